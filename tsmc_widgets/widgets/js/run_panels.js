/** @file The panels of a run: their play head, what moves it, and one draw a frame. */

import { host, runsOf } from "./contact.js";
import { h, write } from "./dom.js";
import { genealogy } from "./genealogy.js";
import { AncestorsStrip, EssStrip, WeightsStrip, letScrub } from "./measures.js";
import { LogZPlot, LorenzPlot, SpreadPlot } from "./run_plots.js";
import { Factors, SampleTable, readSamples } from "./run_samples.js";
import { REST_MS, RunView } from "./run_view.js";
import { StepSlider } from "./transport.js";

/** While the play head moves, values in words change no faster than they can be read. */
const WORDS_MS = 90;

class RunPanels extends RunView {
  /** @param {Place} place */
  constructor({ model, el, signal }) {
    super({ model, el, signal }, { run: 0 });
    this.spoke = -Infinity;
    this.overSteps = [new LogZPlot(), new EssStrip(), new AncestorsStrip()];
    this.atStep = [new SpreadPlot(), new WeightsStrip(), new LorenzPlot()];
    this.strips = [...this.overSteps, ...this.atStep];
    /** Elements of the strips that cannot be seen. @type {Set<Element>} */
    this.unseen = new Set();
    this.factors = new Factors();
    this.samples = new SampleTable((slot) => this.group.tell({ slot, of: runsOf(this.view.record) }), signal);
    this._build(el);
    this._listen();
  }

  /** @param {HTMLElement} el */
  _build(el) {
    this.slider = new StepSlider((t) => this.seek(t), () => this.settle(), this.signal);
    const { readout, rail } = this.slider;
    this.bar = h("div", { class: "rp-bar-row", role: "group", "aria-label": "Step and run" });
    this.bar.append(readout, rail, this.runs.el);
    /** @type {(name: string, title: Node | string, strips: Strip[]) => any} */
    const row = (name, title, strips) =>
      h(
        "section",
        { class: "rp-row", "aria-label": name },
        h("h4", { class: "pv-title" }, title),
        h("div", { class: "rp-strips" }, ...strips.map((strip) => strip.el)),
      );
    this.now = h("span", {});
    const rows = [
      row("Over the steps", "Over the steps", this.overSteps),
      row("At the step shown", this.now, this.atStep),
    ];
    this.body = h("div", { class: "rp-body" }, ...rows, this.factors.el, this.samples.el);
    this.root = h("div", { class: "pv rp", tabindex: "-1" });
    this.root.append(this.bar, this.status.alert, this.status.lost, this.empty, this.body);
    // For tests.
    Object.assign(this.root, { _panels: this });
    this._mount(el);
  }

  _listen() {
    const { signal } = this;
    const scrub = (/** @type {number} */ t) => this._move(t);
    letScrub(this.overSteps, () => this.view.record, scrub, signal);
    const sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.unseen.delete(target);
        else this.unseen.add(target);
      }
      this.redraw();
    });
    for (const strip of this.strips) sight.observe(strip.el);
    signal.addEventListener("abort", () => sight.disconnect());
    this._on(["status"], () => this.status.show(this.model.get("status")));
    this.listen(["samples"], ["header"]);
  }

  load() {
    const { record } = this.view;
    this.factors.show(record.header.factors);
    this.samples.show(record.header, readSamples(record.header, this.sampled));
    this.view.t = Math.min(this.wanted, record.steps);
    this.redraw();
  }

  /** @param {number} t */
  _move(t) {
    this.seek(t);
    this.settle();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { record, t } = this.view;
    const target = /** @type {Element} */ (event.target);
    if (!record || target.tagName === "SELECT" || target === this.samples.scroller) return false;
    const places = { ArrowLeft: t - 1, ArrowRight: t + 1, Home: 0, End: record.steps };
    if (event.key in places) this._move(places[event.key]);
    else if (event.key === " " && target.tagName !== "BUTTON") this.group.tell({ play: true });
    else return false;
    return true;
  }

  /** Panels out of sight as well. */
  redraw() {
    this.all = true;
    this.schedule();
  }

  ready() {
    this.bar.hidden = !this.view.record;
    return super.ready();
  }

  /** @param {number} start */
  paint(start) {
    const { record, t } = this.view;
    const view = { record, t, theme: this.theme, genealogy: genealogy(record, t) };
    const silent = !this.all && start - this.spoke < WORDS_MS;
    for (const strip of this.strips) {
      strip.silent = silent;
      if (this.all || !this.unseen.has(strip.el)) strip.draw(view);
    }
    if (!silent) this.spoke = start;
    clearTimeout(this.rest);
    // What is out of sight and in words must be true when somebody reads it.
    if (!this.all) this.rest = setTimeout(() => this.redraw(), REST_MS);
    this.all = false;
    this.slider.show(t, record.T);
    write(this.now, t === 0 ? "Before step 1" : `After step ${t}`);
    Object.assign(this.stats, { t, steps: record.steps, run: record.header.run });
  }
}

export default host(RunPanels);
