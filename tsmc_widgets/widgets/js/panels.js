/** @file The panels made of words: what the run is, its state, and its final samples. */

import { button, h, icon, number, percent, plural, refill, table, write } from "./dom.js";
import { explained } from "./glossary.js";

/** A labelled menu that keeps its choice where it can. */
export class Menu {
  /**
   * @param {string} label @param {() => void} changed @param {AbortSignal} signal
   * @param {Record<string, string>} [attributes] of the menu
   */
  constructor(label, changed, signal, attributes = {}) {
    this.select = h("select", { "aria-label": label, ...attributes });
    this.el = h("label", { class: "pv-field" }, `${label} `, this.select);
    this.select.addEventListener("change", changed, { signal });
  }

  /** @param {[string, string][]} choices value and name @param {string} [usual] */
  offer(choices, usual) {
    const before = this.value;
    refill(this.select, choices.join("\n"), () => choices.map(([value, name]) => h("option", { value }, name)));
    const values = choices.map(([value]) => value);
    const value = values.includes(before) ? before : usual ?? values[0] ?? "";
    if (this.value !== value) this.value = value;
    this.el.hidden = choices.length < 2;
  }

  get value() {
    return this.select.value;
  }

  set value(value) {
    this.select.value = value;
  }
}

/** Which of several runs is on show. */
export class RunMenu extends Menu {
  /** @param {(run: number) => void} onRun @param {AbortSignal} signal */
  constructor(onRun, signal) {
    super("run", () => onRun(Number(this.value)), signal, { "aria-label": "Run shown" });
    /** @type {number[]} */
    this.runs = [];
  }

  /** @param {any} header @param {number[] | undefined} offered runs that can be shown; all if undefined */
  show({ runs, run }, offered) {
    this.runs = offered ?? runs.map((/** @type {any} */ _, /** @type {number} */ i) => i);
    const name = (/** @type {number} */ each) => `${each + 1} of ${runs.length}, log Ẑ ${number(Number(runs[each]))}`;
    this.offer(this.runs.map((each) => [String(each), name(each)]));
    this.value = String(run);
  }

  /** @param {number} run */
  offers(run) {
    return this.runs.includes(run);
  }
}

/** Prompt, target and facts of what is on show; with more beside the facts. */
export class Heading {
  /** @param {RunMenu} [runs] */
  constructor(runs) {
    this.prompt = h("span", { class: "pv-prompt" });
    this.target = h("span", { class: "pv-target" });
    const line = h("p", { class: "pv-facts" });
    this.facts = runs ? h("span", { class: "pv-fact-list" }) : line;
    if (runs) line.append(this.facts, runs.el);
    this.el = h("header", { class: "pv-heading" }, h("p", {}, this.prompt, this.target), line);
  }

  /** @param {string} prompt @param {string} target @param {string[]} facts */
  show(prompt, target, facts) {
    this.prompt.textContent = prompt ? `“${readableText(prompt)}”` : "(no prompt)";
    this.target.textContent = target;
    this.facts.replaceChildren(...facts.map((fact) => h("span", {}, ...explained(fact))));
  }
}

/** Starts and pauses what takes long; with a name to save the result under. */
export class ActionBar {
  /**
   * @param {{title: string, size: string, name: string}} texts of the bar, its field and the field's width
   * @param {(act: string) => void} press @param {(name: string) => void} rename @param {AbortSignal} signal
   */
  constructor({ title, size, name }, press, rename, signal) {
    this.press = press;
    this.signal = signal;
    this.act = "start";
    this.main = this.button("Start", "", () => this.act, "play");
    this.main.classList.add("tl-main");
    this.name = h("input", { type: "text", size, "aria-label": name, spellcheck: "false" });
    this.name.addEventListener("change", () => rename(this.name.value), { signal });
    this.note = h("span", { class: "pv-note", role: "status" });
    this.saving = h("span", { class: "tl-saving" }, this.note, this.name);
    this.buttons = h("span", { class: "pv-buttons" }, this.main);
    this.el = h("div", { class: "pv-transport", role: "group", "aria-label": title }, this.buttons);
  }

  /** @param {string} label @param {string} title @param {() => string} act @param {any} [image] */
  button(label, title, act, image) {
    const face = [...(image ? [icon(image)] : []), h("span", {}, label)];
    return button({ class: "tl-button", title }, () => this.press(act()), this.signal, ...face);
  }

  /** @param {string} label @param {boolean} going whether a press pauses @param {string} [title] */
  showMain(label, going, title = "") {
    this.act = going ? "pause" : "start";
    if (this.label === label) return;
    this.label = label;
    this.main.title = title;
    this.main.replaceChildren(icon(going ? "pause" : "play"), h("span", {}, label));
  }
}

/** A text with its line breaks shown. @param {string} text */
export function readableText(text) {
  return text.trim().replace(/\s*\n\s*/g, " ↵ ");
}

/** What the computation is doing, and errors, in words. */
export class Status {
  constructor() {
    this.text = h("span", { class: "pv-status-text" });
    this.el = h("p", { class: "pv-status", role: "status" }, this.text);
    this.alert = h("p", { class: "pv-alert", role: "alert", hidden: "" });
    this.lost = h("p", { class: "pv-alert pv-lost", role: "alert", hidden: "" });
    this.lost.textContent =
      "No contact with Python: wait if another cell is running, else run this cell again.";
  }

  show(status) {
    const { state = "", text = "", error = "" } = status || {};
    this.el.dataset.state = state;
    this.text.textContent = text;
    this.el.hidden = text === "";
    write(this.alert, error);
    this.alert.hidden = error === "";
    this._nameControls();
  }

  /** Handles of the sliders around a view, and the menu of factors, have no names of their own. */
  _nameControls() {
    const around = this.el.closest(".tsmc-watch");
    around?.querySelector(".tw-add select")?.setAttribute("aria-label", "Add a factor");
    for (const handle of around?.querySelectorAll(".noUi-handle:not([aria-label])") ?? []) {
      const label = handle.closest(".widget-inline-hbox")?.querySelector(".widget-label");
      if (label?.textContent) handle.setAttribute("aria-label", label.textContent);
    }
  }
}

/** A table whose nodes stay where they are while its numbers change. */
export class NumberTable {
  /** @param {Record<string, string>} attributes */
  constructor(attributes) {
    this.head = h("tr");
    this.body = h("tbody");
    this.el = h("div", attributes, h("table", {}, h("thead", {}, this.head), this.body));
    /** @type {HTMLElement[][]} */
    this.cells = [];
  }

  /**
   * @param {string} names changes when rows or columns do
   * @param {() => Node[]} heads @param {() => Node[]} starts first cell of each row
   * @param {any[][]} contents
   */
  show(names, heads, starts, contents) {
    if (this.names !== names) {
      this.names = names;
      this.head.replaceChildren(...heads().map((node) => h("th", { scope: "col" }, node)));
      this.cells = contents.map((row) => row.map(() => h("td")));
      const rows = starts().map((node, i) => h("tr", {}, h("th", { scope: "row" }, node), ...this.cells[i]));
      this.body.replaceChildren(...rows);
    }
    contents.forEach((row, i) =>
      row.forEach(({ sign, nodes, title = "" }, j) => {
        this.cells[i][j].title = title;
        refill(this.cells[i][j], sign, () => nodes);
      }),
    );
  }
}

/** Texts in a table that scrolls, under a title with their number; a click on a row chooses its slot. */
export class TextTable {
  /** @param {(slot: number) => void} onPick @param {AbortSignal} signal */
  constructor(onPick, signal) {
    this.count = h("span", { class: "pv-note" });
    this.title = h("h4", {}, "Final samples ", this.count);
    this.body = h("tbody");
    const labels = { tabindex: "0", role: "region", "aria-label": "Final samples" };
    this.scroller = h("div", { class: "pv-samples-scroller", ...labels });
    const pick = (/** @type {any} */ event) => {
      const row = event.target.closest("tr");
      if (row) onPick(Number(row.dataset.slot));
    };
    this.body.addEventListener("click", pick, { signal });
  }

  /** @param {number} T */
  wait(T) {
    this.count.textContent = `after step ${T}, when log φ has entered the weights`;
    this.body.replaceChildren();
  }

  /** @param {any[]} samples @param {(sample: any) => Node[]} cells */
  fill(samples, cells) {
    const rows = samples.map((sample) => {
      const dead = Number(sample.weight) === 0 ? "pv-dead-row" : "";
      return h("tr", { "data-slot": String(sample.slot), class: dead }, ...cells(sample));
    });
    this.body.replaceChildren(...rows);
  }
}

/** The weighted samples of a finished run, equal texts together. */
export class Samples extends TextTable {
  /** @param {(slot: number) => void} onPick @param {AbortSignal} signal */
  constructor(onPick, signal) {
    super(onPick, signal);
    this.scroller.append(table(["weight", "particles", "log φ (nats)", "text"], this.body));
    this.el = h("section", { class: "pv-samples" }, this.title, this.scroller);
  }

  /** @param {RunRecord} record */
  show({ K, T, header }) {
    const { samples, num_texts: texts, prompt } = header;
    this.scroller.hidden = samples.length === 0;
    if (samples.length === 0) return this.wait(T);
    const some = texts > samples.length ? `, the ${samples.length} heaviest` : "";
    this.count.textContent = `${plural(texts, "different text")} of ${plural(K, "particle")}${some}, by weight`;
    this.fill(samples, ({ weight, copies, log_phi: logPhi, text }) => [
      h("td", {}, percent(Number(weight))),
      h("td", {}, String(copies)),
      h("td", {}, number(Number(logPhi))),
      h("td", {}, h("span", { class: "pv-note" }, prompt), " ", h("bdi", {}, readableText(text))),
    ]);
  }
}
