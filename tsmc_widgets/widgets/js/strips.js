/**
 * @file Small plots against the step: ESS, log Z hat, surviving ancestors; and the sorted weights.
 */

const LEFT = 42;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 17;

/** A strip: a title with its present value in words, and a canvas. */
class Strip {
  /** @param {string} title @param {string} name for the class */
  constructor(title, name) {
    this.value = h("span", { class: "pv-strip-value" });
    this.canvas = h("canvas", { role: "img" });
    this.el = h(
      "figure",
      { class: `pv-strip pv-strip-${name}` },
      h("figcaption", {}, h("span", { class: "pv-strip-title" }, title), this.value),
      this.canvas,
    );
    this.title = title;
  }

  /** @param {string} text what the strip says at this step */
  say(text) {
    if (this.value.textContent === text) return;
    this.value.textContent = text;
    this.canvas.setAttribute("aria-label", `${this.title}: ${text}`);
  }

  /**
   * Axes over the given ranges, with ticks and labels.
   * @param {Theme} theme @param {[number, number]} xs @param {[number, number]} ys
   * @param {[number, string][]} xTicks @param {[number, string][]} yTicks
   */
  axes(theme, xs, ys, xTicks, yTicks) {
    const { context, width, height } = fitCanvas(this.canvas);
    const [wide, tall] = [width - LEFT - RIGHT, height - TOP - BOTTOM];
    const x = (/** @type {number} */ v) => LEFT + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * wide;
    const y = (/** @type {number} */ v) =>
      height - BOTTOM - ((v - ys[0]) / (ys[1] - ys[0] || 1)) * tall;
    context.font = `11px ${theme.font}`;
    context.lineWidth = 1;
    context.strokeStyle = css(theme.grid);
    context.fillStyle = css(theme.muted);
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const [value, label] of yTicks) {
      const at = Math.round(y(value)) + 0.5;
      line(context, [[LEFT, at], [width - RIGHT, at]]);
      context.fillText(label, LEFT - 6, at);
    }
    context.textBaseline = "alphabetic";
    for (const [value, label] of xTicks) {
      const half = context.measureText(label).width / 2;
      context.textAlign = "center";
      context.fillText(label, clamp(x(value), half, width - half), height - 3);
    }
    return { context, x, y, width, height, halo: theme.background };
  }
}

/** @param {CanvasRenderingContext2D} context @param {number[][]} points */
function line(context, points) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}

/** Ticks of the step axis. @param {number} T @returns {[number, string][]} */
function stepTicks(T) {
  const ticks = T < 4 ? [0, T] : [0, Math.round(T / 2), T];
  return ticks.map((t) => [t, t === T ? `step ${t}` : String(t)]);
}

/**
 * A curve over the steps: recorded part pale, part up to the shown step strong, a dot at the head.
 * @param {any} plot @param {number[]} values at steps 0..n @param {number} t @param {Rgb} colour
 */
function curve({ context, x, y }, values, t, colour) {
  const points = values.map((v, i) => [x(i), y(v)]);
  const runs = (/** @type {number[][]} */ all) => {
    /** @type {number[][]} */
    let part = [];
    for (const point of all) {
      if (Number.isFinite(point[1])) part.push(point);
      else part = (line(context, part), []);
    }
    line(context, part);
  };
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.strokeStyle = css(colour, 0.28);
  runs(points);
  context.strokeStyle = css(colour);
  runs(points.slice(0, t + 1));
  if (!points[t] || !Number.isFinite(points[t][1])) return;
  context.fillStyle = css(colour);
  context.beginPath();
  context.arc(points[t][0], points[t][1], 3.5, 0, 7);
  context.fill();
}

/**
 * The area between two curves over steps 0..t.
 * @param {any} plot @param {number[][]} edges @param {number} t @param {Rgb} colour
 */
function band({ context, x, y }, [lower, upper], t, colour) {
  context.fillStyle = css(colour, 0.2);
  for (let s = 0; s < t; s++) {
    const corners = [upper[s], upper[s + 1], lower[s + 1], lower[s]];
    if (!corners.every(Number.isFinite)) continue;
    context.beginPath();
    corners.forEach((v, i) => context.lineTo(x(i === 1 || i === 2 ? s + 1 : s), y(v)));
    context.fill();
  }
}

/** @param {any} plot @param {RunRecord} record @param {number} t @param {Theme} theme */
function resamplingMarks({ context, x, height }, record, t, theme) {
  // Marks of neighbouring steps shrink rather than run together.
  const half = clamp(0.5 * (x(1) - x(0)), 1, 4);
  for (let s = 0; s < record.steps; s++) {
    if (!record.resampled[s]) continue;
    const strength = s < t ? 1 : 0.35;
    context.strokeStyle = css(theme.orange, (0.35 * strength * half) / 4);
    context.fillStyle = css(theme.orange, strength);
    context.lineWidth = 1.5;
    // Resampling stands at the start of step s + 1, on the weights of step s.
    line(context, [[x(s), TOP], [x(s), height - BOTTOM]]);
    context.beginPath();
    context.moveTo(x(s) - half, 2);
    context.lineTo(x(s) + half, 2);
    context.lineTo(x(s), TOP - 1);
    context.fill();
  }
}

/**
 * A dashed level with its name.
 * @param {any} plot
 * @param {number} value
 * @param {string} label
 * @param {Rgb} colour
 * @param {boolean} [below]
 */
function level({ context, y, width, halo }, value, label, colour, below = false) {
  context.strokeStyle = css(colour);
  context.lineWidth = 1.5;
  context.setLineDash([5, 4]);
  line(context, [[LEFT, y(value)], [width - RIGHT, y(value)]]);
  context.setLineDash([]);
  context.fillStyle = css(colour);
  const at = y(value) + (below ? 12 : -4);
  context.textAlign = "right";
  context.strokeStyle = css(halo);
  context.lineWidth = 4;
  context.strokeText(label, width - RIGHT - 2, at);
  context.fillText(label, width - RIGHT - 2, at);
}

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
    const strips = [this.ess, this.logZ, this.weights, this.ancestors];
    this.el = h("section", { class: "pv-strips", "aria-label": "Measures of the run" });
    this.el.append(...strips.map(({ el }) => el));
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
      level(plot, limit, "", theme.muted);
    }
    curve(plot, [K, ...record.ess], t, theme.blue);
    const value = t === 0 ? K : record.ess[t - 1];
    const rule = threshold && K > 1 ? `; ▼ when below ${named}` : "";
    this.ess.say(`${number(value, K < 1000 ? 1 : 0)} of ${K}${rule}`);
  }

  /** @param {any} view */
  _logZ({ record, t, theme }) {
    const { T, exactLogZ } = record;
    const values = [0, ...record.logZ];
    const errors = [0, ...record.logZError];
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
  _ancestors({ record, t, theme }) {
    const { K, T } = record;
    const { survivors } = record.genealogy(t);
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
