/** @file The twist debugger: its verdict, then where, which tokens, how, and what if. */

import { Group, View, host } from "./contact.js";
import { button, css, h, number, table } from "./dom.js";
import { ActionBar, Heading, Menu, Status } from "./panels.js";
import { BOTTOM, DASHED, Strip, TOP, dot, drawBand, drawPath, level, line, niceTicks, rangeOf, shareAt } from "./plot.js";

const TITLES = { where: "Where", tokens: "Which tokens", how: "How", "what if": "What if" };
const SHADE_NATS = 3;

/** One quantity over the steps, or over powers of psi: a line for each twist, with its interval. */
class Chart extends Strip {
  /** @param {any} chart as Python describes it */
  constructor(chart) {
    super([chart.title, chart.name, chart.meaning ?? ""]);
    this.chart = chart;
  }

  /** @param {Theme} theme @param {number} t */
  draw(theme, t) {
    const { lines, levels = [], mark = null, over } = this.chart;
    const xs = lines.flatMap((/** @type {any} */ each) => each.x);
    const ends = lines.flatMap((/** @type {any} */ each) => [...each.y, ...(each.low ?? []), ...(each.high ?? [])]);
    const ys = rangeOf([...ends, ...levels.map((/** @type {any} */ each) => each.value)]);
    const range = /** @type {[number, number]} */ ([Math.min(...xs), Math.max(...xs)]);
    const plot = this.axes(theme, range, ys, niceTicks(...range, 4), niceTicks(...ys, 3));
    const colours = [theme.blue, theme.orange];
    lines.forEach((/** @type {any} */ each, /** @type {number} */ i) => {
      const colour = colours[i % 2];
      const rows = each.x.map((/** @type {number} */ x, /** @type {number} */ k) => [x, each.low?.[k] ?? null, each.high?.[k] ?? null]);
      drawBand(plot, rows, colour, 0.2);
      const points = each.x.map((/** @type {number} */ x, /** @type {number} */ k) => [x, each.y[k]]);
      drawPath(plot, points, { colour, dash: i ? DASHED : [] });
      for (const [x, y] of points) if (y !== null) dot(plot.context, plot.x(x), plot.y(y), 2.5, css(colour));
    });
    for (const { value, name } of levels) level(plot, value, name, theme.muted);
    const here = over === "step" ? t : mark;
    if (here >= range[0] && here <= range[1] && here !== null) {
      const x = Math.round(plot.x(here)) + 0.5;
      line(plot.context, [[x, TOP], [x, plot.height - BOTTOM]], css(theme.text, 0.6), 1);
    }
    this.say(inWords(lines, over, here));
  }

  /** The place on the axis under a pointer. @param {PointerEvent} event */
  at(event) {
    const xs = this.chart.lines.flatMap((/** @type {any} */ each) => each.x);
    return Math.round(Math.min(...xs) + shareAt(this.canvas, event) * (Math.max(...xs) - Math.min(...xs)));
  }
}

/** Values at one place with their intervals. @param {any[]} lines @param {string} over @param {number | null} at */
function inWords(lines, over, at) {
  const found = lines.flatMap(({ who, x, y, low, high, exact }) => {
    const k = x.indexOf(at);
    if (k < 0 || y[k] === null) return [];
    // Runs that agree say nothing of how they spread.
    const ends = exact ? ", exact" : !low ? "" : low[k] === null ? ", the same in each run" : `, 95 % ${number(low[k])} to ${number(high[k])}`;
    return [`${lines.length > 1 ? `${who}: ` : ""}${number(y[k])}${ends}`];
  });
  if (!found.length) return over === "step" ? "click a step" : "";
  return `${over === "step" ? `step ${at}` : `best a = ${at}`}: ${found.join("; ")}`;
}

/** True over learned log psi, a dot a prefix. */
class Scatter extends Strip {
  static about = ["log ψ* over log ψ, means of each step removed", "scatter", "Nats. On the dashed line ψ is right."];

  /** @param {any[]} points [t, learned, true, error] @param {Theme} theme @param {number} t */
  draw(points, theme, t) {
    const xs = rangeOf(points.map((p) => p[1]));
    const ys = rangeOf(points.map((p) => p[2]));
    const plot = this.axes(theme, xs, ys, niceTicks(...xs, 4), niceTicks(...ys, 4));
    const ends = [Math.max(xs[0], ys[0]), Math.min(xs[1], ys[1])];
    line(plot.context, ends.map((v) => [plot.x(v), plot.y(v)]), css(theme.muted), 1.2, DASHED);
    for (const [step, x, y, error] of points) {
      const here = step === t;
      if (here && error) line(plot.context, [[plot.x(x), plot.y(y - 1.96 * error)], [plot.x(x), plot.y(y + 1.96 * error)]], css(theme.orange, 0.6));
      dot(plot.context, plot.x(x), plot.y(y), here ? 4 : 2.5, css(here ? theme.orange : theme.blue, here ? 1 : 0.45));
    }
    this.say(`${points.length} prefixes; those of step ${t} in orange`);
  }
}

class DebugView extends View {
  /** @param {Place} place */
  constructor({ model, el, signal }) {
    super({ model, el, signal }, { t: 0, sentences: 0 });
    this.t = model.get("step") || 1;
    this.group = new Group(model, (news) => news.t !== undefined && this.seek(news.t, true), signal);
    this.heading = new Heading();
    this.status = new Status();
    this.alone = Boolean(model.get("alone"));
    this.bar = new ActionBar({ title: "Debugger", size: "8", name: "Budget in tokens" }, (act) => this._press(act), (text) => this._ask({ budget: Number(text) || 0 }), signal);
    this.bar.note.textContent = "tokens of rollouts at most";
    this.bar.name.value = String(model.get("budget") ?? "");
    /** @type {Chart[]} */
    this.charts = [];
    this.scatter = new Scatter();
    this.text = new Menu("text", () => this.redraw(), signal);
    this._build(el);
    this._on(["data"], () => this.load());
    this._on(["step"], () => this.seek(model.get("step"), true));
    this._on(["status"], () => this._showStatus());
    this.load();
    this._showStatus();
    this.retheme();
    if (!this.alone) this._greet(this.status.lost, ["status", "data"]);
  }

  /** @param {HTMLElement} el */
  _build(el) {
    this.verdict = h("ol", { class: "td-verdict" });
    this.plots = { where: h("div", { class: "td-plots" }), how: h("div", { class: "td-plots" }), "what if": h("div", { class: "td-plots" }) };
    this.gains = h("div", { class: "td-gains" });
    this.worst = h("div", { class: "td-worst" });
    const inside = {
      where: [this.plots.where],
      tokens: [this.text.el, this.gains, this.worst],
      how: [this.plots.how],
      "what if": [this.plots["what if"], ...(this.alone ? [] : [this._form()]), (this.forked = h("div", { class: "td-worst" }))],
    };
    /** @type {Record<string, HTMLElement>} */
    this.sections = {};
    for (const [name, title] of Object.entries(TITLES)) {
      const head = h("h4", { class: "pv-title" }, title);
      this.sections[name] = h("section", { class: "td-section", "aria-label": title, tabindex: "-1" }, head, ...inside[name]);
    }
    this.bar.el.append(this.status.el, this.bar.saving);
    this.bar.el.hidden = this.alone;
    this.empty = h("p", { class: "pv-empty" }, "Running the twist …");
    this.body = h("div", { class: "td-body" }, h("section", { "aria-label": "Verdict" }, h("h4", { class: "pv-title" }, "Verdict"), this.verdict), ...Object.values(this.sections));
    this.root = h("div", { class: "pv td", tabindex: "-1" });
    this.root.append(this.heading.el, this.bar.el, this.status.alert, this.status.lost, this.empty, this.body);
    this._mount(el);
  }

  /** Fields of a fork. */
  _form() {
    this.fields = { particle: h("input", { type: "number", min: "0", value: "0", "aria-label": "Particle" }), token: h("input", { type: "text", placeholder: " token", "aria-label": "Token to force" }) };
    const go = button({ class: "tl-button" }, () => this._fork(), this.signal, "Fork");
    return h("p", { class: "td-form" }, "Force on particle ", this.fields.particle, " at the step shown the token ", this.fields.token, go, " and see both futures on the same noise, below.");
  }

  _fork() {
    const n = (this.model.get("ask")?.n ?? 0) + 1;
    this._ask({ step: this.t, ask: { act: "fork", n, particle: Number(this.fields.particle.value), text: this.fields.token.value } });
  }

  _showStatus() {
    const status = this.model.get("status") || {};
    this.status.show(status);
    const going = status.state === "running";
    this.bar.showMain(going ? "Pause" : status.state === "done" ? "Roll out more" : "Go on", going);
  }

  load() {
    const data = this.model.get("data") || {};
    if (this.data === data) return;
    this.data = data;
    if (data.heading) this.heading.show(data.heading.prompt, data.heading.target, data.heading.facts);
    this.charts = [];
    for (const [name, box] of Object.entries(this.plots)) {
      const charts = (data.charts?.[name] ?? []).map((/** @type {any} */ chart) => new Chart(chart));
      for (const chart of charts) if (chart.chart.over === "step") this._letSeek(chart);
      const all = name === "how" && data.points?.length ? [...charts, this.scatter] : charts;
      box.replaceChildren(...all.map((/** @type {any} */ chart) => chart.el));
      this.charts.push(...charts);
      this.sections[name].hidden = !all.length && name !== "what if";
    }
    this.text.offer((data.texts ?? []).map((/** @type {any} */ each, /** @type {number} */ i) => [String(i), each.name]));
    this._sentences(data.verdict ?? []);
    this._worst(data.worst ?? []);
    this._forks(data.fork);
    this.redraw();
  }

  /** @param {Chart} chart */
  _letSeek(chart) {
    chart.canvas.classList.add("td-clicks");
    chart.canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => this.seek(chart.at(event)), { signal: this.signal });
  }

  /** @param {any[]} verdict */
  _sentences(verdict) {
    const rows = verdict.map(({ text, evidence, view, defect }) => {
      const go = button({ class: "td-link" }, () => this._show(view), this.signal, `see “${TITLES[view]}”`);
      return h("li", { class: defect ? "td-defect" : "td-fine" }, h("b", {}, text), ` ${evidence} `, go);
    });
    this.verdict.replaceChildren(...rows);
    this.stats.sentences = rows.length;
  }

  /** @param {string} view */
  _show(view) {
    const section = this.sections[view];
    section.scrollIntoView({ block: "nearest" });
    section.focus({ preventScroll: true });
  }

  /** Prefixes at which psi is most wrong. @param {any[]} rows */
  _worst(rows) {
    const body = h("tbody", {}, ...rows.map((row) => {
      const texts = (row.rollouts ?? []).map((/** @type {string} */ text) => h("li", {}, text));
      const more = texts.length ? [h("details", {}, h("summary", {}, "rollouts"), h("ul", {}, ...texts))] : [];
      const node = h("tr", { title: "Show this step" }, ...[row.t, number(row.log_psi), row.star, number(row.error), row.cost].map((value) => h("td", {}, String(value))), h("td", {}, row.text, ...more));
      node.addEventListener("click", () => this.seek(row.t), { signal: this.signal });
      return node;
    }));
    const titles = /** @type {any} */ (["step", "log ψ", "log ψ*, 95 %", "error", "costs", "prefix"]);
    this.worst.replaceChildren(...(rows.length ? [h("p", { class: "pv-note" }, "Where ψ is most wrong: error in nats, less the mean of its step; positive is overvalued. Costs: share of the ESS of weights ψ*/ψ at its step."), table(titles, body, { class: "td-table" })] : []));
  }

  /** Next tokens of the forked prefix. @param {any} fork */
  _forks(fork) {
    if (!fork) return;
    const body = h("tbody", {}, ...fork.rows.map((/** @type {string[]} */ row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell)))));
    const titles = ["token", "", "log p₀", "log ψ", "log q", "log ψ*, 95 %"];
    this.forked.replaceChildren(h("p", { class: "pv-note" }, fork.text), table(titles, body, { class: "td-table td-fork" }));
  }

  /** @param {number} t @param {boolean} [told] by another view */
  seek(t, told = false) {
    this.t = t;
    if (!told) {
      this.group.tell({ t });
      this._ask({ step: t });
    }
    this.redraw();
  }

  ready() {
    const known = Boolean(this.data?.heading);
    this.body.hidden = !known;
    this.empty.hidden = known;
    return known;
  }

  paint() {
    for (const chart of this.charts) chart.draw(this.theme, this.t);
    if (this.data.points?.length) this.scatter.draw(this.data.points, this.theme, this.t);
    const text = this.data.texts?.[Number(this.text.value) || 0];
    this.gains.replaceChildren(...(text ? this._rows(text) : []));
    this.stats.t = this.t;
  }

  /** A text three times: coloured by learned gain, by true gain, by their difference. @param {any} text */
  _rows(text) {
    const kinds = [["learned", "gain"], ["true", "star"], ["difference", "gap"]];
    const theme = this.theme;
    return kinds.filter(([, key]) => text.tokens.some((/** @type {any} */ token) => token[key] !== null)).map(([name, key]) => {
      const cells = text.tokens.map((/** @type {any} */ token) => {
        const value = token[key];
        const cell = h("span", { class: "td-token" }, token.text);
        if (value === null) return cell;
        const strength = Math.min(1, Math.abs(value) / SHADE_NATS) * 0.55;
        cell.style.background = css(value > 0 ? theme.orange : theme.blue, strength);
        const error = key !== "gain" && token.error ? ` ± ${number(1.96 * token.error)}` : "";
        cell.title = `step ${token.t}: ${name} gain ${number(value)}${error} nats`;
        if (token.t === this.t) cell.classList.add("td-here");
        cell.append(h("small", {}, number(value, 1)));
        cell.addEventListener("click", () => this.seek(token.t), { signal: this.signal });
        return cell;
      });
      return h("p", { class: "td-text" }, h("span", { class: "pv-note td-kind" }, name), ...cells);
    });
  }
}

export default host(DebugView);
