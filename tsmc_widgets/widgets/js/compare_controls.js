/** @file The controls of a comparison: what is chosen, as chips and menus. */

import { h, refill } from "./dom.js";
import { methodName } from "./methods.js";
import { Menu } from "./panels.js";

const GROUP_TITLES = {
  storybook: "on the model that ships",
  smollm2: "on smollm2, a real model: minutes a run",
  toys: "toys: everything is known exactly",
  paper: "the paper’s own and others, where their checkpoints can be loaded",
  own: "your own",
  given: "given",
  learned: "learned from scratch",
  texts: "texts alone",
};
const METHOD_TIPS = {
  none: "ψ = 1: texts of p₀, weighted by φ at the end",
  "look-ahead": "ψ asks φ about the text so far",
  optimal: "ψ*, by enumeration",
  shipped: "A trained twist that comes with the package",
  rejection: "Exact samples, by throwing most texts of p₀ away",
  "best-of-n": "The best of 16 texts of p₀",
  beam: "Beam search for the largest p₀ φ",
};
const RULE_NAMES = { never: "never (IWAE)", ess: "ESS < K/2", always: "every step" };
const MENUS = {
  seeds: ["seeds", [1, 2, 3, 5, 10], "Trainings and runs of their own; intervals are over them"],
  num_exact: ["exact samples", [0, 20, 50, 100, 200, 500], "For upper bounds and KL(σ‖q); 0: neither"],
  num_runs: ["runs", [20, 50, 100, 200, 500], "Forward runs for each K, seed and method"],
  num_updates: ["updates", [10, 20, 50, 100, 200, 500, 1000], "What each learning method may spend"],
  batch_size: ["batch", [20, 50, 100, 200], "Texts drawn for each update"],
};
const USUAL_SIZES = [1, 4, 16, 64, 256, 1024];

/** A group of choices of which at least one is taken. */
class Chips {
  /** @param {string} title @param {(values: any[]) => void} changed @param {AbortSignal} signal */
  constructor(title, changed, signal) {
    this.row = h("div", { class: "cm-chips" });
    this.el = h("div", { class: "cm-group" }, h("span", { class: "pv-note" }, title), this.row);
    this.signal = signal;
    this.changed = changed;
    /** @type {{value: any, name: string, input: any, chip: any}[]} */
    this.chips = [];
  }

  /** @param {{value: any, name: string, label?: string, tip?: string}[]} choices @param {string[]} taken names @param {boolean} locked */
  show(choices, taken, locked) {
    refill(this.row, choices.map(({ name }) => name).join("\n"), () => this._offer(choices));
    for (const { name, input } of this.chips) {
      input.checked = taken.includes(name);
      input.disabled = locked;
    }
  }

  /** @param {{value: any, name: string, label?: string, tip?: string}[]} choices */
  _offer(choices) {
    this.chips = choices.map(({ value, name, label, tip }) => {
      const input = h("input", { type: "checkbox", value: name });
      const chip = h("label", { class: "cm-chip", title: tip ?? "" }, input, h("span", {}, label ?? name));
      input.addEventListener("change", () => this.changed(this.taken()), { signal: this.signal });
      return { value, name, input, chip };
    });
    return this.chips.map(({ chip }) => chip);
  }

  taken() {
    return this.chips.filter(({ input }) => input.checked).map(({ value }) => value);
  }
}

/** All controls. */
export class CompareControls {
  /** @param {(changes: Record<string, any>) => void} change @param {AbortSignal} signal */
  constructor(change, signal) {
    this.signal = signal;
    const chips = (/** @type {string} */ title, /** @type {() => void} */ act) => new Chips(title, act, signal);
    const problems = () => change({ problems: this._taken(this.problems) });
    const methods = () => change({ methods: this._taken(this.methods) });
    this.problems = Object.fromEntries(
      ["toys", "storybook", "smollm2", "paper", "own"].map((name) => [name, chips(GROUP_TITLES[name], problems)]),
    );
    this.methods = Object.fromEntries(
      ["given", "learned", "texts", "own"].map((name) => [name, chips(GROUP_TITLES[name], methods)]),
    );
    this.sizes = new Chips("particles K", (values) => change({ num_particles: values }), signal);
    this.rules = new Chips("resampling", (values) => change({ rules: values }), signal);
    /** @type {[string, Menu][]} */
    this.menus = Object.entries(MENUS).map(([name, [label, , title]]) => {
      const menu = new Menu(label, () => change({ [name]: Number(menu.value) }), signal, { title });
      return [name, menu];
    });
    this.profiles = h("input", { type: "checkbox" });
    this.profiles.addEventListener("change", () => change({ profiles: this.profiles.checked }), { signal });
    this._build();
  }

  _build() {
    const tip = "A second sweep for each K: effective sample size, ancestors, and log Ẑ of single runs";
    const profiles = h("label", { class: "cm-chip", title: tip }, this.profiles, h("span", {}, "profiles, single runs"));
    const { toys, storybook, smollm2, paper, own } = this.problems;
    this.paper = h("details", { class: "cm-more" }, h("summary", {}, "more problems"), paper.el);
    const set = (/** @type {string} */ title, /** @type {Node[]} */ ...parts) =>
      h("fieldset", { class: "cm-set" }, h("legend", {}, title), ...parts);
    this.el = h(
      "section",
      { class: "cm-controls", "aria-label": "What to compare" },
      set("Problems", toys.el, storybook.el, smollm2.el, own.el, this.paper),
      set("Methods", ...Object.values(this.methods).map(({ el }) => el)),
      set("Runs", this.sizes.el, this.rules.el, h("div", { class: "cm-fields" }, ...this.menus.map(([, { el }]) => el), profiles)),
    );
  }

  /** @param {Record<string, Chips>} groups */
  _taken(groups) {
    return Object.values(groups).flatMap((group) => group.taken());
  }

  /** @param {any} menu @param {any} settings @param {boolean} locked */
  show(menu, settings, locked) {
    if (!menu.problems) return;
    for (const [group, chips] of Object.entries(this.problems)) {
      const mine = menu.problems.filter((/** @type {any} */ p) => p.group === group);
      const choices = mine.map((/** @type {any} */ p) => ({ ...p, tip: `${p.summary}\n${p.teaches}` }));
      chips.show(choices, settings.problems.map((/** @type {any} */ p) => p.name ?? p), locked);
      chips.el.hidden = mine.length === 0;
    }
    for (const [group, chips] of Object.entries(this.methods)) {
      const mine = menu.methods.filter((/** @type {any} */ m) => m.group === group);
      const choices = mine.map(({ name }) => ({ value: name, name, label: methodName(name), tip: METHOD_TIPS[name] }));
      chips.show(choices, settings.methods, locked);
      chips.el.hidden = mine.length === 0;
    }
    const sizes = sorted(USUAL_SIZES, settings.num_particles).map((size) => ({ value: size, name: String(size) }));
    this.sizes.show(sizes, settings.num_particles.map(String), locked);
    const rules = Object.entries(RULE_NAMES).map(([name, label]) => ({ value: name, name, label }));
    this.rules.show(rules, settings.rules, locked);
    for (const [name, menu] of this.menus) {
      const values = sorted(MENUS[name][1], [settings[name]]).map(String);
      menu.offer(values.map((value) => [value, value]));
      menu.value = String(settings[name]);
      menu.select.disabled = locked;
    }
    this.profiles.checked = settings.profiles;
    this.profiles.disabled = locked;
    if (settings.problems.some((/** @type {any} */ p) => String(p).startsWith("paper/"))) this.paper.open = true;
  }
}

/** All numbers of both lists, the smallest first. @param {number[]} usual @param {number[]} chosen */
function sorted(usual, chosen) {
  return [...new Set([...usual, ...chosen])].sort((a, b) => a - b);
}

