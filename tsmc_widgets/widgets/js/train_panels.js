/** @file The panels of a training made of words: what is trained, buttons, numbers, and texts. */

import { button, clamp, h, meter, number, percent, plural, refill, table, write } from "./dom.js";
import { key, methodName } from "./methods.js";
import { ActionBar, NumberTable, readableText } from "./panels.js";

/** Nats below log phi = 0 at which the bar of a text is empty. */
const BAR_NATS = 8;

/** The settings of a training as facts. @param {any} header */
export function trainingFacts(header) {
  return [
    header.problem,
    `T = ${plural(header.num_steps, "token")}`,
    header.form,
    `learning rate ${Number(header.learning_rate.toPrecision(2))}`,
    `batch of ${header.batch_size}`,
    `seed ${header.seed}`,
  ];
}

/** Start, pause, stop, start over, save. */
export class TrainBar extends ActionBar {
  /** @param {(act: string) => void} press @param {(folder: string) => void} rename @param {AbortSignal} signal */
  constructor(press, rename, signal) {
    super({ title: "Training", size: "14", name: "Folder to save into" }, press, rename, signal);
    this.stop = this.button("Stop", "Stop after this update; all that was learned stays", () => "stop", "stop");
    this.again = this.button("Start over", "Forget what was learned and begin again", () => "restart", "again");
    this.save = this.button("Save", "Save the twist into this folder", () => "save");
    this.buttons.append(this.stop, this.again);
    this.saving.append(this.save);
  }

  /** @param {any} status @param {boolean} begun whether there is a twist */
  show(status, begun) {
    const { state = "idle", stale = "" } = status;
    const going = state === "running" && !stale;
    const label = stale
      ? "Start again"
      : { idle: "Start", running: "Pause", failed: "Try again" }[state] ?? (state === "done" ? "Train more" : "Go on");
    this.showMain(label, going);
    this.stop.disabled = state !== "running" && state !== "paused";
    this.again.hidden = state === "idle" || stale !== "";
    this.save.disabled = !begun;
    this.note.textContent = status.note || "";
  }
}

/** Says that controls were moved away from what is on show. */
export class StaleNote {
  /** @param {(act: string) => void} press @param {AbortSignal} signal */
  constructor(press, signal) {
    this.text = h("span", {});
    this.undo = button({ class: "tl-button" }, () => press("undo"), signal, "Undo the change");
    this.el = h("p", { class: "pv-alert tl-stale", role: "status", hidden: "" }, this.text, this.undo);
  }

  /** @param {string} stale */
  show(stale) {
    this.el.hidden = stale === "";
    this.text.textContent =
      `Changed: ${stale}. What is shown below was trained before that. “Start again” begins a new ` +
      "training and forgets this one. ";
  }
}

/** What the race tells of each method: titles, and what they mean. */
const RACE_TITLES = [
  ["method", ""],
  ["updates", "Updates taken; skipped ones found no text with φ > 0"],
  ["ESS", "Effective sample size as a share of the texts"],
  ["lower bound", "Estimate of E[lower bound] in nats, with its 95 % t-interval"],
  ["upper bound", "Estimate of E[upper bound] in nats, with its 95 % t-interval"],
  ["gap", "Upper minus lower bound, in nats, ± one standard error"],
  ["r", "Correlation of learned and optimal log ψ, means of each step removed"],
  ["log mean φ", "Log of the mean of φ over texts of its own proposal, in nats, ± one standard error; an estimate"],
];

/** One row of numbers for each method; choosing a row chooses what the other panels show. */
export class RaceTable {
  /** @param {(method: string) => void} choose @param {AbortSignal} signal */
  constructor(choose, signal) {
    this.table = new NumberTable({ class: "tl-race pv-samples", role: "radiogroup", "aria-label": "Methods" });
    this.el = this.table.el;
    this.name = `tl${Math.random().toString(36).slice(2, 8)}`;
    this.el.addEventListener("change", (event) => choose(event.target.value), { signal });
  }

  /** @param {any} view */
  show({ racers, chosen, looks, theme }) {
    const names = racers.map((racer) => racer.method).join() + theme.dark;
    const contents = racers.map((racer) => this._values(racer, looks).map((text) => ({ sign: text, nodes: [text] })));
    const heads = () => RACE_TITLES.map(([title, tip]) => h("span", { title: tip }, title));
    this.table.show(names, heads, () => racers.map((racer) => this._start(racer, racers.length, theme)), contents);
    racers.forEach((racer, i) => {
      const row = this.table.body.rows[i];
      row.querySelector("input").checked = racer === chosen;
      row.classList.toggle("tl-chosen", racer === chosen && racers.length > 1);
    });
  }

  /** @param {any} racer @param {number} count of methods @param {Theme} theme */
  _start({ method, proposal_only: only }, count, theme) {
    const radio = h("input", { type: "radio", name: this.name, value: method });
    radio.hidden = count === 1;
    const label = h("label", {}, radio, key(method, theme), h("b", {}, methodName(method)));
    if (only) label.append(h("span", { class: "pv-note" }, " proposal only"));
    return label;
  }

  _values(racer, looks) {
    const last = racer.bounds.at(-1);
    const ess = racer.ess.at(-1);
    const look = looks.find(({ method }) => method === racer.method);
    const within = (/** @type {number[]} */ [mean, low, high]) =>
      mean === null ? "−∞" : `${number(mean)} [${low === null ? "?" : number(low)}, ${high === null ? "?" : number(high)}]`;
    return [
      racer.skipped ? `${racer.done} (${racer.skipped} skipped)` : String(racer.done),
      ess ? percent(ess[1]) : "–",
      last ? within(last.slice(1, 4)) : "–",
      last ? within(last.slice(4, 7)) : "–",
      last && last[7] !== null ? `${number(last[7])} ± ${number(last[8])}` : "–",
      look?.correlation == null ? "–" : number(look.correlation),
      logMeanPhi(look?.samples),
    ];
  }
}

/** @param {any} samples @param {string} [unit] */
function logMeanPhi(samples, unit = "") {
  if (!samples) return "–";
  const [value, error] = samples.log_mean_phi;
  if (value === null) return "−∞";
  return `${number(value)} ± ${error === null ? "?" : number(error)}${unit}`;
}

/** Texts side by side: of the model itself, and of the proposal that the twist has learned. */
export class BeforeAfter {
  constructor() {
    this.before = this._column("Before: the model’s own texts, p₀");
    this.after = this._column("After");
    this.el = h("section", { class: "tl-texts", "aria-label": "Texts before and after" }, this.before.el, this.after.el);
  }

  /** @param {string} title */
  _column(title) {
    const heading = h("h4", {}, title);
    const note = h("p", { class: "pv-note" });
    const body = h("tbody");
    const el = h("div", { class: "pv-samples" }, heading, note, table(["log φ", "text"], body));
    return { heading, note, body, el };
  }

  show({ before, look, chosen, header }) {
    const texts = `the first of ${header.num_texts} texts`;
    this._fill(this.before, before, `log mean φ ${logMeanPhi(before, " s.e. nats")}; ${texts}`, header);
    this.el.hidden = !before;
    const after = look?.samples;
    this.after.el.hidden = !after;
    if (!after) return;
    this.after.heading.textContent = `After ${plural(look.at, "update")} of ${methodName(chosen.method)}: q ∝ p₀ ψ`;
    this._fill(this.after, after, `log mean φ ${logMeanPhi(after, " s.e. nats")}; the same noise, not weighted or resampled`, header);
  }

  /** @param {any} column @param {any} samples @param {string} note @param {any} header */
  _fill(column, samples, note, header) {
    if (!samples) return;
    write(column.note, note);
    refill(column.body, samples, () => samples.texts.map(([text, logPhi]) => {
      const share = logPhi === null ? 0 : clamp(1 + logPhi / BAR_NATS, 0, 1);
      const value = h("td", { class: "tl-phi" }, meter(share), number(logPhi ?? -Infinity));
      return h("tr", {}, value, h("td", {}, h("span", { class: "pv-note" }, header.prompt), " ", h("bdi", {}, readableText(text))));
    }));
  }
}
