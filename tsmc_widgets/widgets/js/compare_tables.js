/** @file The numbers of a comparison: a table of all problems, and one of the problem on show. */

import { h, number, plural } from "./dom.js";
import { isDrawn, key, methodName } from "./methods.js";
import { Menu, NumberTable } from "./panels.js";

export const QUANTITIES_SHOWN = {
  "KL(σ||q)": ["KL(σ‖q)", "What q misses: mean of log σ/q over exact samples, nats. Low is good."],
  "KL(q||σ)": ["KL(q‖σ)", "What q writes and σ does not: mean of log q/σ over texts of q, nats. Low is good."],
  gap: ["gap", "Upper minus lower bound, nats: bounds the symmetrised KL of one SMC draw and σ. Low is good."],
  lower: ["lower bound", "Mean of log Ẑ over runs, nats. High is good."],
  upper: ["upper bound", "Mean of log Ẑ with an exact sample kept among the particles, nats. Low is good."],
  "lower, pooled": ["lower, pooled", "Log of the mean of Ẑ: tighter, and a bound on average, nats."],
  "upper, pooled": ["upper, pooled", "Minus log of the mean of 1/Ẑ: tighter, nats."],
  "E_q[log φ]": ["mean log φ of q", "Of texts that q writes, unweighted, nats. High is good."],
  "mean log φ of texts": ["mean log φ of K texts", "Of the texts that the method gives, weighted, nats."],
  "forward tokens": ["tokens read", "By the base model, for K texts."],
};
/** @param {string} label */
const tableOf = (label) => ({ class: "cm-table", role: "region", "aria-label": label, tabindex: "0" });
const MARKS = { w: ["○", "waiting"], r: ["◐", "running"], d: ["●", "done"], f: ["✕", "failed"] };

/** What was measured on a problem, to be asked for by name. */
export class Measured {
  constructor(data) {
    this.exact = data?.exact ?? null;
    this.profiles = data?.profiles ?? [];
    this.histograms = data?.histograms ?? [];
    this.cells = (data?.cells ?? []).map(toCell);
    this.index = new Map(this.cells.map((cell) => [this._key(cell), cell]));
  }

  _key({ method, rule, quantity, size }) {
    return [method, rule, quantity, size].join("\n");
  }

  /**
   * A number of a method; where it knows one rule alone (a twist that only proposes), that one.
   * @param {string} method @param {string} quantity @param {number} size @param {string} rule
   */
  find(method, quantity, size, rule) {
    for (const [r, k] of [[rule, size], ["", size], ["", 0]]) {
      const found = this.index.get(this._key({ method, rule: r, quantity, size: k }));
      if (found) return found;
    }
    return this.cells.find((c) => c.method === method && c.quantity === quantity && c.size === size);
  }

  /** @param {"rule" | "size" | "quantity" | "method"} field */
  values(field) {
    return [...new Set(this.cells.map((cell) => cell[field]))];
  }
}

function toCell([method, rule, quantity, size, kind, mean, low, high, seeds, best, over]) {
  const ends = [mean, low, high].map((value) => (value === null ? NaN : Number(value)));
  return { method, rule, quantity, size, kind, mean: ends[0], low: ends[1], high: ends[2], seeds, best, over };
}

/** A mean and half of its interval. @param {any} cell */
export function withInterval({ mean, low, high, quantity }) {
  if (quantity === "forward tokens") return Math.round(mean).toLocaleString("en").replaceAll(",", " ");
  const half = (high - low) / 2;
  const digits = half < 0.05 ? 3 : 2;
  if (!Number.isFinite(mean) || !Number.isFinite(half) || half < 1e-9) return number(mean, digits);
  return `${number(mean, digits)} ± ${number(half, digits)}`;
}

/** The same with all digits and what the interval is over, for a tooltip. @param {any} cell @param {number} total */
export function inFull(cell, total) {
  const seeds = cell.over === "seeds" ? plural(cell.seeds, "seed") : "runs of one seed";
  const ends = [cell.low, cell.high].map((end) => number(end, 4));
  const width = Number.isFinite(cell.high - cell.low) ? `95 % t-interval over ${seeds}: [${ends.join(", ")}]` : seeds;
  const so = cell.seeds < total ? `\nso far ${cell.seeds} of ${plural(total, "seed")}` : "";
  const rule = cell.rule ? `\nresampled: ${cell.rule}` : "";
  return `${number(cell.mean, 4)} (${cell.kind})\n${width}${rule}${so}`;
}

/** How the seeds stand. @param {string} letters */
function dots(letters) {
  const counts = Object.entries(MARKS)
    .map(([letter, [, word]]) => [[...letters].filter((l) => l === letter).length, word])
    .filter(([count]) => count);
  const said = counts.map(([count, word]) => `${count} ${word}`).join(", ");
  const marks = [...letters].map((letter) => h("span", { class: `cm-dot cm-dot-${letter}`, "aria-hidden": "true" }, MARKS[letter][0]));
  return h("span", { class: "cm-dots", role: "img", "aria-label": said, title: said }, ...marks);
}

/** @param {any} found @param {any} plan @param {number} total */
function cellContent(found, plan, total) {
  if (plan?.why) return { sign: plan.why, nodes: [h("span", { class: "pv-note", title: plan.why }, `– ${plan.why}`)] };
  const letters = plan?.seeds ?? "";
  const open = /[wrf]/.test(letters);
  if (!found) return { sign: `dots ${letters}`, nodes: letters ? [dots(letters)] : ["–"] };
  const text = withInterval(found);
  const partial = found.seeds < total;
  const value = h(found.best ? "strong" : "span", { class: partial ? "cm-partial" : "" }, text);
  const nodes = [value, h("span", { class: "cm-kind" }, found.kind)];
  if (open) nodes.push(dots(letters));
  return { sign: [text, found.kind, found.best, partial, open && letters].join(), nodes, title: inFull(found, total) };
}

/** Every method on every problem: one number each, or how its seeds stand. */
export class Overview {
  /** @param {() => void} changed @param {AbortSignal} signal */
  constructor(changed, signal) {
    this.quantity = new Menu("number", changed, signal);
    this.table = new NumberTable(tableOf("All problems"));
    this.el = h("section", { class: "cm-overview" },
      h("div", { class: "cm-heading" }, h("h4", {}, "All problems"), this.quantity.el), this.table.el);
  }

  show({ problems, methods, measured, plan, size, rule, total }) {
    this.el.hidden = problems.length < 2;
    const known = new Set(problems.flatMap((name) => measured[name].values("quantity")));
    const offered = Object.keys(QUANTITIES_SHOWN).filter((name) => known.has(name));
    const atSize = (/** @type {string} */ name) => (/^(KL|E_q)/.test(name) ? "" : `, K = ${size}`);
    this.quantity.offer(offered.map((name) => [name, QUANTITIES_SHOWN[name][0] + atSize(name)]));
    const contents = methods.map((method) =>
      problems.map((problem) =>
        cellContent(measured[problem].find(method, this.quantity.value, size, rule), plan.get(`${problem}\n${method}`), total),
      ),
    );
    this.table.show([...problems, "", ...methods].join("\n"), () => ["method", ...problems].map((t) => h("span", {}, t)),
      () => methods.map((method) => h("span", {}, methodName(method))), contents);
  }
}

/** Every number of the problem on show; its rows are the plots' legend. */
export class Details {
  /** @param {(method: string) => void} choose @param {AbortSignal} signal */
  constructor(choose, signal) {
    this.table = new NumberTable(tableOf("The problem on show"));
    this.el = this.table.el;
    this.buttons = new Map();
    this.table.body.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) choose(button.value);
    }, { signal });
  }

  show({ problem, methods, data, plan, size, rule, total, theme, chosen }) {
    const known = new Set(data.values("quantity"));
    const texts = known.has("mean log φ of texts");
    const columns = ["KL(σ||q)", "KL(q||σ)", "gap", "lower", "upper", texts ? "mean log φ of texts" : "E_q[log φ]"];
    if (texts) columns.push("forward tokens");
    const contents = methods.map((method) => {
      const state = plan.get(`${problem}\n${method}`);
      return columns.map((name, i) => {
        const found = data.find(method, name, size, rule);
        const bare = i > 0 && !found;
        return bare ? { sign: "–", nodes: [h("span", { class: "pv-note" }, "–")] } : cellContent(found, i ? { seeds: "" } : state, total);
      });
    });
    const head = (/** @type {string} */ name) =>
      h("span", { title: QUANTITIES_SHOWN[name][1] }, QUANTITIES_SHOWN[name][0]);
    this.table.show([problem, ...columns, "", ...methods, theme.dark].join("\n"),
      () => [h("span", {}, "method"), ...columns.map(head)], () => this._starts(methods, theme), contents);
    for (const [method, button] of this.buttons) button.setAttribute("aria-pressed", String(method === chosen));
  }

  /** @param {string[]} methods @param {Theme} theme */
  _starts(methods, theme) {
    this.buttons = new Map(methods.map((method) => [method, h("button", { type: "button", class: "cm-method", value: method,
      title: "Bring this method out in the plots" }, ...(isDrawn(method) ? [key(method, theme)] : []), h("span", {}, methodName(method)))]));
    return [...this.buttons.values()];
  }
}
