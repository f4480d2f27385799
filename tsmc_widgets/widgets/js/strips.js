/** @file The measures that the particle view draws itself, where no panels stand beside it. */

import { h, number } from "./dom.js";
import { MEASURES, drawAncestors, drawEss, drawWeights, letScrub } from "./measures.js";
import { Strip, curve, drawBand, level, stepTicks } from "./plot.js";
import { errorRows, isKnown } from "./run_plots.js";

export class Strips {
  /** @param {(t: number) => void} onScrub @param {AbortSignal} signal */
  constructor(onScrub, signal) {
    this.ess = MEASURES.ess();
    this.logZ = new Strip(
      "Running log Ẑ (estimate)",
      "logz",
      "One run's estimate of the log of the mean of φ. Band and s.e.: one standard error, estimated " +
        "from this run's ancestors alone; unknown once all particles share one first ancestor.",
    );
    this.weights = MEASURES.weights();
    this.ancestors = MEASURES.ancestors();
    this.el = h("section", { class: "pv-strips", "aria-label": "Measures of the run" });
    this.el.append(this.logZ.el, this.weights.el, this.ancestors.el);
    letScrub([this.ess, this.logZ, this.ancestors], () => this.record, onScrub, signal);
  }

  /** @param {any} view */
  draw(view) {
    this.record = view.record;
    drawEss(this.ess, view);
    this._logZ(view);
    drawWeights(this.weights, view);
    drawAncestors(this.ancestors, view);
  }

  /** @param {any} view */
  _logZ({ record, t, theme }) {
    const { T, exactLogZ } = record;
    const values = [0, ...record.logZ.subarray(0, record.steps)];
    const rows = errorRows(values, record);
    const finite = rows.flatMap(([, ...ends]) => ends).filter(Number.isFinite);
    if (isKnown(exactLogZ)) finite.push(exactLogZ);
    let [low, high] = [Math.min(...finite), Math.max(...finite)];
    if (high - low < 0.1) [low, high] = [low - 0.05, high + 0.05];
    const digits = high - low < 1 ? 2 : 1;
    const ticks = /** @type {[number, string][]} */ ([low, high].map((v) => [v, number(v, digits)]));
    const margin = 0.08 * (high - low);
    const plot = this.logZ.axes(theme, [0, T], [low - margin, high + margin], stepTicks(T), ticks);
    if (isKnown(exactLogZ)) {
      const above = exactLogZ > (low + high) / 2;
      level(plot, exactLogZ, `exact ${number(exactLogZ)}`, theme.text, above);
    }
    drawBand(plot, rows.slice(0, t + 1), theme.blue, 0.2);
    curve(plot, values, t, theme.blue);
    const own = t === 0 ? 0 : record.logZError[t - 1];
    const error = Number.isFinite(own) ? ` ± ${number(own)} s.e.` : ", s.e. unknown";
    this.logZ.say(`${number(values[t])} nats${Number.isFinite(values[t]) ? error : ""}`);
  }
}
