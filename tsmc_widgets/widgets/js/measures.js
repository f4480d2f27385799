/** @file Measures of a run against the step: ESS, log Z hat, surviving ancestors; and the sorted weights. */

class Strips {
  /** @param {(t: number) => void} onScrub @param {AbortSignal} signal */
  constructor(onScrub, signal) {
    this.ess = new Strip("Effective sample size (ESS)", "ess");
    this.logZ = new Strip("Running log Ẑ (estimate)", "logz");
    this.weights = new Strip("Weights, sorted", "weights");
    this.ancestors = new Strip("Surviving ancestors", "ancestors");
    this.ess.el.title =
      "How many equally weighted particles the population is worth. ▼ marks resampling, which begins " +
      "the step after the ESS fell below the dashed threshold.";
    this.logZ.el.title =
      "One run's estimate of the log of the mean of φ. Band and s.e.: one standard error, estimated " +
      "from this run's ancestors alone; unknown once all particles share one first ancestor.";
    this.el = h("section", { class: "pv-strips", "aria-label": "Measures of the run" });
    this.el.append(this.logZ.el, this.weights.el, this.ancestors.el);
    for (const strip of [this.ess, this.logZ, this.ancestors]) {
      strip.canvas.classList.add("pv-scrubs");
      const scrub = (/** @type {PointerEvent} */ event) => {
        if (event.type === "pointermove" && event.buttons !== 1) return;
        const box = strip.canvas.getBoundingClientRect();
        const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
        if (this.record) onScrub(Math.round(share * this.record.T));
      };
      strip.canvas.addEventListener("pointerdown", scrub, { signal });
      strip.canvas.addEventListener("pointermove", scrub, { signal });
    }
  }

  /** @param {any} view */
  draw(view) {
    this.record = view.record;
    this._ess(view);
    this._logZ(view);
    this._weights(view);
    this._ancestors(view);
  }

  /** @param {any} view */
  _ess({ record, t, theme }) {
    const { K, T, header } = record;
    const threshold = header.ess_threshold;
    const limit = threshold === null ? 0 : threshold * K;
    const yTicks = /** @type {[number, string][]} */ ([[0, "0"], [K, String(K)]]);
    const named = number(limit, limit % 1 ? 1 : 0);
    if (limit > 0.15 * K && limit < 0.85 * K) yTicks.push([limit, named]);
    const plot = this.ess.axes(theme, [0, T], [0, K], stepTicks(T), yTicks);
    resamplingMarks(plot, record, t, theme);
    if (threshold) {
      level(plot, limit, "", theme.orange);
    }
    curve(plot, [K, ...record.ess.subarray(0, record.steps)], t, theme.blue);
    const value = t === 0 ? K : record.ess[t - 1];
    const rule = threshold && K > 1 ? `; ▼ when below ${named}` : "";
    this.ess.say(`${number(value, K < 1000 ? 1 : 0)} of ${K}${rule}`);
  }

  /** @param {any} view */
  _logZ({ record, t, theme }) {
    const { T, exactLogZ } = record;
    const values = [0, ...record.logZ.subarray(0, record.steps)];
    const errors = [0, ...record.logZError.subarray(0, record.steps)];
    const edges = [-1, 1].map((side) => values.map((v, i) => v + side * (errors[i] || 0)));
    const finite = edges.flat().filter(Number.isFinite);
    if (exactLogZ !== null && Number.isFinite(exactLogZ)) finite.push(exactLogZ);
    let [low, high] = [Math.min(...finite), Math.max(...finite)];
    if (high - low < 0.1) [low, high] = [low - 0.05, high + 0.05];
    const digits = high - low < 1 ? 2 : 1;
    const ticks = /** @type {[number, string][]} */ ([low, high].map((v) => [v, number(v, digits)]));
    const margin = 0.08 * (high - low);
    const plot = this.logZ.axes(theme, [0, T], [low - margin, high + margin], stepTicks(T), ticks);
    if (exactLogZ !== null && Number.isFinite(exactLogZ)) {
      const above = exactLogZ > (low + high) / 2;
      level(plot, exactLogZ, `exact ${number(exactLogZ)}`, theme.text, above);
    }
    band(plot, edges, t, theme.blue);
    curve(plot, values, t, theme.blue);
    const error = Number.isFinite(errors[t]) ? ` ± ${number(errors[t])} s.e.` : ", s.e. unknown";
    this.logZ.say(`${number(values[t])} nats${Number.isFinite(values[t]) ? error : ""}`);
  }

  /** @param {any} view */
  _weights({ record, t, theme }) {
    const { K } = record;
    const weights = record.sortedWeights(t);
    const largest = weights[0];
    const ceiling = Math.min(1, Math.max(largest, 2 / K)) || 1;
    /** @type {[number, string][]} */
    const xTicks = K === 1 ? [[0.5, "1"]] : [[0, "largest"], [K, `${K} particles`]];
    const yTicks = /** @type {[number, string][]} */ ([[0, "0"], [ceiling, percent(ceiling)]]);
    const plot = this.weights.axes(theme, [0, K], [0, ceiling], xTicks, yTicks);
    const { context, x, y } = plot;
    context.fillStyle = css(theme.blue);
    const gap = x(1) - x(0) > 4 ? 1 : 0;
    for (let k = 0; k < K && weights[k] > 0; k++) {
      context.fillRect(x(k), y(weights[k]), Math.max(0.5, x(k + 1) - x(k) - gap), y(0) - y(weights[k]));
    }
    if (K > 1) level(plot, 1 / K, `average 1/K = ${percent(1 / K)}`, theme.muted);
    this.weights.say(largest > 0 ? `largest ${percent(largest)}` : "all weights are 0");
  }

  /** @param {any} view */
  _ancestors({ record, t, theme, genealogy }) {
    const { K, T } = record;
    const { survivors } = genealogy;
    const plot = this.ancestors.axes(theme, [0, T], [0, K], stepTicks(T), [[0, "0"], [K, String(K)]]);
    const { context, x, y } = plot;
    resamplingMarks(plot, record, t, theme);
    context.fillStyle = css(theme.blue, 0.85);
    survivors.forEach((count, s) => {
      context.fillRect(x(s) + 0.5, y(count), Math.max(1, x(1) - x(0) - 1), y(0) - y(count));
    });
    this.ancestors.say(t === 0 ? "none yet" : `${survivors[0]} of ${plural(K, "first token")} left`);
  }
}
