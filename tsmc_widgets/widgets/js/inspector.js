/** @file One token under the lens: what else could have been written, and what the choice cost. */

import { WAITS, h, meter, number, percent, table } from "./dom.js";
import { lineage } from "./genealogy.js";
import { ENDED, ENDS, GOING } from "./record.js";

const CONTEXT_TOKENS = 8;

export class Inspector {
  constructor() {
    this.title = h("p", { class: "pv-inspected", dir: "auto" });
    this.where = h("p", { class: "pv-note" });
    this.hint = h("p", { class: "pv-note pv-hint" });
    this.rows = h("tbody");
    this.caption = h("caption", { class: "pv-note" });
    this.table = table(["token", "p₀", ["ψ", { class: "pv-col-psi" }], "q"], this.rows, { class: "pv-next" });
    this.table.prepend(this.caption);
    this.sum = h("table", { class: "pv-sum" });
    this.blame = h("p", { class: "pv-note pv-blame" });
    this.el = h(
      "section",
      { class: "pv-inspector", "aria-label": "Next-token inspector" },
      h("h4", {}, "Why this token?"),
      this.hint,
      this.title,
      this.where,
      this.table,
      this.sum,
      this.blame,
    );
    this.hint.textContent =
      "Point at a token, or click one to keep it: what else could have been written there, and how " +
      "the choice changed the weight.";
  }

  /** @param {any} view @param {{s: number, slot: number} | null} cell */
  show(view, cell) {
    const shown = cell && cell.s >= 0 && cell.s < view.record.steps ? cell : null;
    this.el.classList.toggle("pv-idle", !shown);
    const key = shown && `${view.record.id} ${shown.s} ${shown.slot} ${view.theme.dark}`;
    if (key === this.key) return;
    this.key = key;
    this.hint.hidden = Boolean(shown);
    for (const part of [this.title, this.where, this.table, this.sum, this.blame]) part.hidden = !shown;
    if (!shown) return;
    const { record } = view;
    const at = shown.s * record.K + shown.slot;
    this._name(record, shown, at);
    const ended = record.ending[at] === ENDED;
    this.table.hidden = ended;
    this.sum.hidden = ended;
    this.blame.hidden = ended;
    if (ended) return;
    this._table(record, shown, at);
    this._sum(record, shown, at);
  }

  /** @param {RunRecord} record @param {{s: number, slot: number}} cell @param {number} at */
  _name(record, { s, slot }, at) {
    const path = lineage(record, s + 1, slot);
    const from = Math.max(0, s - CONTEXT_TOKENS);
    const before = Array.from(path.subarray(from, s), (k, i) => record.texts[record.tokens[(from + i) * record.K + k]]);
    const lead = from > 0 ? "…" : record.header.prompt ? `${record.header.prompt} ` : "";
    const said = record.ending[at] ? "∎" : record.words[record.tokens[at]];
    this.title.replaceChildren(
      h("span", { class: "pv-context" }, lead + joined(before), " "),
      h("strong", { dir: "auto" }, said),
    );
    const end = record.ending[at] === ENDED ? " · the text ended earlier" : record.ending[at] ? " · the text ends here" : "";
    this.where.textContent = `step ${s + 1} · slot ${slot}${end}`;
  }

  /** @param {RunRecord} record @param {{s: number, slot: number}} cell @param {number} at */
  _table(record, { s, slot }, at) {
    const chosen = record.tokens[at];
    const found = nextTokens(record, s, slot);
    const known = found.length > 0;
    let lines = found;
    if (!found.some(({ token }) => token === chosen)) {
      // At T and where a text ends the column of log psi holds log phi, which is no psi.
      const psi = s + 1 < record.T && record.ending[at] === GOING ? record.logPsi[at] : NaN;
      lines = [...found, { token: chosen, logP: record.logP[at], logQ: record.logQ[at], logPsi: psi }];
    }
    const twisted = record.header.has_twist;
    const highest = Math.max(...lines.map(({ logPsi }) => (Number.isFinite(logPsi) ? logPsi : -Infinity)));
    this.caption.textContent = known
      ? `likeliest next tokens${twisted ? "; ψ against the highest" : ""}`
      : "the chosen token; record the run with top_k=8 to see what else there was";
    this.table.classList.toggle("pv-no-twist", !twisted);
    const rows = lines.map(({ token, logP, logQ, logPsi }) => {
      const mark = token === chosen;
      return h(
        "tr",
        mark ? { class: "pv-chosen", "aria-current": "true" } : {},
        h("th", { scope: "row" }, mark ? h("span", { class: "pv-arrow", title: "the token drawn" }, "▸") : "",
          h("bdi", {}, token === record.header.eos ? "∎ end" : record.words[token])),
        share("p0", Math.exp(logP), number(logP)),
        share("psi", Number.isFinite(highest) ? Math.exp(logPsi - highest) : NaN, number(logPsi)),
        share("q", Math.exp(logQ), number(logQ)),
      );
    });
    this.rows.replaceChildren(...rows);
  }

  /**
   * Whether the token drawn or the text before it changed the weight.
   * @param {RunRecord} record @param {{s: number, slot: number}} cell @param {number} at @param {boolean} last
   */
  _blame(record, { s, slot }, at, last) {
    const [drawn, changed] = [record.drawn[at], record.changed[at]];
    this.blame.hidden = last || !record.header.has_twist || !Number.isFinite(drawn + changed);
    if (this.blame.hidden) return;
    const blind = nextTokens(record, s, slot).every(({ logPsi }, _, all) => Math.abs(logPsi - all[0].logPsi) < EQUAL);
    const before = s > 0 ? record.words[record.tokens[(s - 1) * record.K + record.ancestors[at]]] : "the prompt";
    const why = blind
      ? `ψ is the same for every token here: it reads the text up to “${before}”, and this is what it thinks of that.`
      : Math.abs(drawn) < EQUAL
        ? "q follows ψ: the weight is the same whichever token is drawn, so this one is not to blame."
        : "";
    this.blame.textContent = `Of the increment ${signed(drawn)} is the token drawn, and ${signed(changed)} the twist's new value of the text before it. ${why}`;
  }

  /** The increment as a sum. @param {RunRecord} record @param {{s: number, slot: number}} cell @param {number} at */
  _sum(record, { s, slot }, at) {
    const { K } = record;
    const last = s + 1 === record.T || record.ending[at] === ENDS;
    const parent = s > 0 ? record.ancestors[at] : slot;
    const before = s === 0 || record.resampled[s] ? 1 / K : record.weights[(s - 1) * K + parent];
    const gain = `Δ log ψ${last ? ", with log φ" : ""}`;
    const dead = record.logIncrement[at] === -Infinity;
    const lines = [
      ["log p₀", number(record.logP[at]), ""],
      ["− log q", number(0 - record.logQ[at]), ""],
      [gain, dead && Number.isNaN(record.gain[at]) ? "−∞" : signed(record.gain[at]), psiStep(record, at)],
      ["= log increment", `${signed(record.logIncrement[at])} nats`, ""],
      ["weight", percent(record.weights[at]), `${s > 0 && record.resampled[s] ? "resampled, " : ""}from ${percent(before)}`],
    ];
    this._blame(record, { s, slot }, at, last);
    this.sum.replaceChildren(
      ...lines.map(([name, value, note], i) =>
        h(
          "tr",
          i === 3 ? { class: "pv-total" } : {},
          h("th", { scope: "row" }, name, " ", h("span", { class: "pv-note" }, note)),
          h("td", {}, value),
        ),
      ),
    );
  }
}

/** Below this many nats two values are one. */
const EQUAL = 1e-4;

/** Tokens as a text; what blanks there are is theirs or, where they have none, ours. @param {string[]} tokens */
function joined(tokens) {
  const own = tokens.some((text) => /^\s/.test(text));
  const whole = tokens.map((text, i) => (i + 1 < tokens.length ? text.replace(WAITS, "") : text));
  return whole.join(own ? "" : " ").replace(/\s+/g, " ");
}

/** @param {RunRecord} record @param {number} at */
function psiStep(record, at) {
  const [after, gain] = [record.logPsi[at], record.gain[at]];
  return Number.isFinite(gain) ? `${number(after - gain)} → ${number(after)}` : "";
}

/** @param {number} value */
function signed(value) {
  return value > 0 ? `+${number(value)}` : number(value);
}

/**
 * The recorded next tokens of a particle's prefix, the likeliest under p0 or q first.
 * @param {RunRecord} record @param {number} s @param {number} slot of the particle after the step
 */
function nextTokens(record, s, slot) {
  const table = record.tables[s];
  if (!table) return [];
  const { width, rows } = table;
  const start = rows[slot] * width;
  return Array.from({ length: width }, (_, i) => ({
    token: table.tokens[start + i],
    logP: table.logP[start + i],
    logQ: table.logQ[start + i],
    logPsi: table.logPsi[start + i],
  }));
}

/** A cell with a bar and a number: a probability, or log psi with its bar against the highest. @param {"p0" | "psi" | "q"} name @param {number} part @param {string} log */
function share(name, part, log) {
  const isPsi = name === "psi";
  const text = h("span", { class: "pv-share" }, isPsi && !Number.isNaN(part) ? log : percent(part));
  const cell = h("td", isPsi ? { class: "pv-col-psi" } : {}, meter(part, `pv-filled-${name}`), text);
  cell.title = `log ${{ p0: "p₀", psi: "ψ", q: "q" }[name]} = ${log}`;
  return cell;
}
