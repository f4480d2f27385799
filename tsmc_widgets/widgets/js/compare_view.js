/** @file The view of a comparison: what is chosen, what is under way, and one draw a frame. */

import { CompareControls } from "./compare_controls.js";
import { BoundsByK, Forest, GapByK, Profile, Reward, Spread } from "./compare_plots.js";
import { Details, Measured, Overview, withInterval } from "./compare_tables.js";
import { View, host } from "./contact.js";
import { h, number, plural, refill, write } from "./dom.js";
import { ActionBar, Menu, Status } from "./panels.js";

/** Seconds in words. @param {number} seconds */
function about(seconds) {
  if (seconds < 8) return "a few seconds";
  if (seconds < 100) return `${5 * Math.ceil(seconds / 5)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.round(minutes / 6) / 10} h`;
}

/** Start, pause, cancel; how far it is; and where to write it. */
class CompareBar extends ActionBar {
  /** @param {(act: string) => void} press @param {(stem: string) => void} rename @param {AbortSignal} signal */
  constructor(press, rename, signal) {
    super({ title: "Runs", size: "12", name: "Name of the files to write" }, press, rename, signal);
    this.cancel = this.button("Cancel", "Stop at once; what is done stays, what runs is dropped", () => "cancel", "stop");
    this.exports = ["csv", "tex", "html"].map((kind) => {
      const what = kind === "csv" ? "Write all numbers to a file" : "Write all tables to a file";
      return this.button(kind === "tex" ? "LaTeX" : kind.toUpperCase(), what, () => kind);
    });
    this.buttons.append(this.cancel);
    this.saving.append(...this.exports);
    this.fill = h("span", { class: "pv-filled" });
    this.progress = h("div", { class: "cm-progress", role: "progressbar", "aria-valuemin": "0", "aria-label": "Runs done" }, this.fill);
  }

  show({ state = "idle", done = 0, total = 0, note = "" }) {
    const going = state === "running";
    const ending = state === "pausing" || state === "cancelling";
    const label = { running: "Pause", pausing: "Pausing", cancelling: "Ending" }[state] ??
      (done >= total ? "All done" : state === "failed" ? "Try again" : done > 0 || state === "paused" ? "Go on" : "Start");
    this.showMain(label, going, going ? "Start nothing more; what runs ends first" : "Run what is missing; what is done is not done again");
    this.main.disabled = ending || (!going && done >= total);
    this.cancel.disabled = !(going || state === "pausing");
    for (const node of this.exports) node.disabled = done === 0;
    write(this.note, note);
    this.progress.setAttribute("aria-valuemax", String(total));
    this.progress.setAttribute("aria-valuenow", String(done));
    this.fill.style.width = `${total ? (100 * done) / total : 0}%`;
  }
}

/** The progress line. @param {any} status @param {number} age seconds since the status came */
function progressLine({ state = "idle", done = 0, total = 0, running = [], left, failures = [], workers, folder }, age) {
  const busy = ["running", "pausing", "cancelling"].includes(state);
  const parts = [`${done} of ${plural(total, "run")} done`];
  if (failures.length) parts.push(`${failures.length} failed`);
  if (busy && running.length) {
    const [name, spent] = running[0];
    const rest = running.length > 1 ? ` and ${running.length - 1} more` : "";
    parts.push(`at ${name} for ${Math.round(spent + age)} s${rest}`);
  } else if (busy) parts.push(`starting ${plural(workers, "worker")}`);
  if (state === "running" && left !== null && left !== undefined && running.length) {
    parts.push(left > age ? `about ${about(left - age)} left` : "longer than runs like it took");
  }
  if (state === "paused" || state === "cancelled") parts.push(state);
  if (!busy && folder) parts.push(`kept in ${folder}`);
  return parts.join(" · ");
}

class CompareView extends View {
  /** @param {Place} place */
  constructor({ model, el, signal }) {
    super({ model, el, signal }, { done: 0 });
    this.chosen = "";
    this.heard = performance.now();
    /** @type {Record<string, Measured>} */
    this.measured = {};
    const again = () => this.schedule();
    this.controls = new CompareControls((changes) => this._change(changes), signal);
    this.status = new Status();
    this.bar = new CompareBar((act) => this._press(act), (stem) => this._ask({ stem }), signal);
    this.overview = new Overview(again, signal);
    this.tabs = new Menu("problem", again, signal);
    this.sizeMenu = new Menu("K", again, signal);
    this.ruleMenu = new Menu("resampled", again, signal);
    this.details = new Details((method) => ((this.chosen = this.chosen === method ? "" : method), again()), signal);
    this.plots = [new BoundsByK(), new GapByK(), new Forest(), new Reward(),
      new Profile(["Effective sample size", "ess"], "ESS / K"),
      new Profile(["Surviving ancestors", "ancestors"], "surviving ancestors / K"), new Spread()];
    this._build(el);
    this._listen();
    this._read();
    this.retheme();
    this._greet(this.status.lost, ["status", "results"]);
  }

  /** @param {HTMLElement} el */
  _build(el) {
    this.failures = h("ul", { class: "cm-failures pv-alert", hidden: "", "aria-label": "Failed runs" });
    this.about = h("p", { class: "pv-facts" });
    const heading = h("div", { class: "cm-heading" }, this.tabs.el, this.sizeMenu.el, this.ruleMenu.el, this.about);
    const plots = h("section", { class: "cm-plots", "aria-label": "Plots" }, ...this.plots.map((plot) => plot.el));
    this.legend = h("p", { class: "pv-note" });
    this.one = h("section", { class: "cm-one" }, heading, this.details.el, this.legend, plots);
    this.bar.el.append(this.status.el, this.bar.saving);
    this.root = h("div", { class: "pv tl cm", tabindex: "-1" });
    this.root.append(this.controls.el, this.bar.el, this.bar.progress, this.status.alert, this.status.lost, this.failures, this.overview.el, this.one);
    this._mount(el);
  }

  _listen() {
    this._on(["menu", "settings", "plan", "status", "stem"], () => this.schedule());
    this._on(["status"], () => (this.heard = performance.now()));
    this._on(["results"], () => (this._read(), this.schedule()));
    const clock = setInterval(() => this._tick(), 1000);
    this.signal.addEventListener("abort", () => clearInterval(clock));
  }

  /** @param {string} act */
  _press(act) {
    this._ask({ stem: this.bar.name.value });
    super._press(act);
  }

  /** A control was moved; the last chip of a group stays. @param {Record<string, any>} changes */
  _change(changes) {
    const empty = Object.values(changes).some((value) => Array.isArray(value) && value.length === 0);
    if (!empty) this._ask({ settings: { ...this.model.get("settings"), ...changes } });
    this.schedule();
  }

  _read() {
    const results = this.model.get("results") || {};
    this.measured = Object.fromEntries(Object.entries(results).map(([name, data]) => [name, new Measured(data)]));
  }

  /** How long the work has taken goes on by itself. */
  _tick() {
    const status = this.model.get("status") || {};
    if (status.running?.length) this.status.text.textContent = progressLine(status, this._age());
  }

  /** Seconds since Python spoke last: the clocks of two machines may differ. */
  _age() {
    return (performance.now() - this.heard) / 1000;
  }

  /** What the panels read. */
  _view() {
    const [settings, status] = ["settings", "status"].map((name) => this.model.get(name) || {});
    const plan = new Map((this.model.get("plan") || []).map((/** @type {any} */ p) => [`${p.problem}\n${p.method}`, p]));
    const problems = (settings.problems ?? []).map((/** @type {any} */ p) => p.name ?? p);
    const measured = Object.fromEntries(problems.map((/** @type {string} */ name) => [name, this.measured[name] ?? new Measured(null)]));
    this.tabs.offer(problems.map((/** @type {string} */ name) => [name, name]));
    const problem = this.tabs.value;
    const data = measured[problem] ?? new Measured(null);
    const sizes = settings.num_particles ?? [];
    this.sizeMenu.offer(sizes.map((/** @type {number} */ k) => [String(k), String(k)]), String(sizes.at(-1)));
    const rules = [...new Set(Object.values(measured).flatMap((m) => m.cells.filter((c) => c.quantity === "lower").map((c) => c.rule)))];
    this.ruleMenu.offer(rules.map((rule) => [rule, rule]));
    const methods = settings.methods ?? [];
    if (!methods.includes(this.chosen)) this.chosen = "";
    return {
      settings, status, plan, problems, measured, problem, data, sizes, methods, chosen: this.chosen,
      size: Number(this.sizeMenu.value), rule: this.ruleMenu.value, total: settings.seeds ?? 1, theme: this.theme,
    };
  }

  paint() {
    const view = this._view();
    const { status } = view;
    const locked = ["running", "pausing", "cancelling"].includes(status.state);
    this.controls.show(this.model.get("menu") || {}, view.settings, locked);
    this.bar.show(status);
    if (document.activeElement !== this.bar.name) this.bar.name.value = this.model.get("stem");
    this.status.show({ state: { cancelled: "stopped", idle: "idle" }[status.state] ?? status.state, text: progressLine(status, this._age()), error: status.error });
    this._fail(status.failures ?? []);
    this.overview.show(view);
    this.details.show(view);
    this._explain(view);
    for (const plot of this.plots) plot.draw(view);
    this.stats.done = status.done ?? 0;
  }

  /** @param {[string, string][]} failures */
  _fail(failures) {
    this.failures.hidden = failures.length === 0;
    refill(this.failures, JSON.stringify(failures), () => failures.map(([who, why]) => h("li", {}, h("b", {}, `${who}: `), why)));
  }

  /** What is on show, in words. @param {any} view */
  _explain({ problem, data, settings, total }) {
    const found = this.model.get("menu")?.problems?.find((/** @type {any} */ p) => p.name === problem);
    const drawn = data.cells.find((/** @type {any} */ cell) => cell.quantity === "log Z by rejection");
    const estimate = drawn ? `log Z = ${withInterval(drawn)} by rejection, an estimate` : "";
    const exact = data.exact === null ? estimate : `log Z = ${number(data.exact, 4)}, exact`;
    const facts = [found?.summary ?? "", exact].filter(Boolean);
    refill(this.about, facts.join(), () => facts.map((fact) => h("span", {}, fact)));
    const over = total > 1 ? `means over ${total} seeds ± half of a 95 % t-interval; bold: apart from all others` : "one seed: ± is over its runs, and nothing is in bold";
    this.legend.textContent = `In nats; ${over}. ${settings.num_exact ? "Upper bounds and KL(σ‖q) rest on exact samples." : "Without exact samples there are no upper bounds."} Press a method to bring it out.`;
  }
}

export default host(CompareView);
