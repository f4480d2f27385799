/** @file A lesson: a question to answer before the run is played, where to look, and the number that answers. */

import { button, h, number, percent } from "./dom.js";
import { genealogy } from "./genealogy.js";
import { explain, explained } from "./glossary.js";

/** What a lesson may ask for: the measure at step t, its name, and its value in words. */
const MEASURES = {
  ess: [
    (/** @type {any} */ record, /** @type {number} */ t) => (t ? record.ess[t - 1] : record.K),
    "ESS", (/** @type {number} */ v, /** @type {any} */ { K }) => `${number(v, 1)} of ${K}`,
  ],
  ancestors: [
    (record, t) => genealogy(record, t).survivors[0],
    "First tokens with descendants", (v, { K }) => `${v} of ${K}`,
  ],
  top: [(record, t) => record.sortedWeights(t)[0], "Largest weight", (v) => percent(v)],
};

export class Tour {
  /**
   * @param {{seek: (t: number) => void, play: (t: number, then: () => void) => void,
   *   look: (spot: string) => void, next: () => void, hasNext: boolean}} on what a lesson does to the view
   * @param {AbortSignal} signal
   */
  constructor(on, signal) {
    this.on = on;
    this.signal = signal;
    this.title = h("h4", {});
    this.intro = h("p", {});
    this.question = h("p", { class: "pv-question" });
    this.choices = h("p", { class: "pv-choices", role: "group", "aria-label": "Your prediction" });
    this.result = h("p", { class: "pv-answer", role: "status" });
    this.again = button({}, () => this.reset(), signal, "Ask again");
    this.next = button({}, () => on.next(), signal, "Next lesson");
    const ends = h("p", { class: "pv-choices" }, this.again, this.next);
    this.el = h("section", { class: "pv-tour", "aria-label": "Lesson", hidden: "" });
    this.el.append(this.title, this.intro, this.question, this.choices, this.result, ends);
  }

  /** Whether the answer must not be seen yet. */
  get asking() {
    return Boolean(this.lesson) && !this.answered;
  }

  /** @param {any} lesson what Python tells of it; empty for none */
  show(lesson) {
    const there = Boolean(lesson?.question);
    if (!there && !this.lesson) return;
    this.lesson = there ? lesson : null;
    this.el.hidden = !there;
    if (!there) return this.on.look("");
    const { number: n, of, name, intro, question, choices } = lesson;
    this.title.textContent = `Lesson ${n} of ${of}: ${name}`;
    explain(this.intro, intro);
    explain(this.question, question);
    this.choices.replaceChildren(...choices.map(([words], i) => button({}, () => this._choose(i), this.signal, words)));
    this.next.hidden = n >= of || !this.on.hasNext;
    this.reset();
  }

  /** Ask from the beginning. */
  reset() {
    this.chosen = this.answered = undefined;
    this.result.textContent = "";
    this.again.hidden = true;
    for (const each of this.choices.children) each.removeAttribute("aria-pressed");
    this.on.look("");
    this.meet(this.record);
  }

  /** The run on show: it can be predicted once it has come as far as the question. @param {any} record */
  meet(record) {
    this.record = record;
    if (!this.lesson || !record) return;
    const early = record.steps < this.lesson.step;
    for (const each of this.choices.children) /** @type {any} */ (each).disabled = early || this.chosen !== undefined;
    if (this.chosen === undefined) this.on.seek(this.lesson.since);
  }

  /** @param {number} choice */
  _choose(choice) {
    this.chosen = choice;
    this.choices.children[choice].setAttribute("aria-pressed", "true");
    this.meet(this.record);
    this.on.play(this.lesson.step, () => this._answer());
  }

  _answer() {
    const { record, lesson: { measure, step, since, choices, text, spot } } = this;
    const [value, name, words] = MEASURES[measure];
    const [then, now] = [value(record, since), value(record, step)];
    const found = since ? now - then : now;
    const right = choices.findLastIndex(([, from]) => from === null || found >= from);
    const before = since ? `${words(then, record)} after step ${since}, ` : "";
    const said = this.chosen === right ? "As you predicted. " : `The answer is “${choices[right][0]}”. `;
    this.answered = true;
    this.result.replaceChildren(said, h("strong", {}, `${name}: ${before}${words(now, record)} after step ${step}. `), ...explained(text));
    this.again.hidden = false;
    this.on.look(spot);
  }
}
