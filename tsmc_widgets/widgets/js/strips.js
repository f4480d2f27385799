/**
 * @file Small plots with a title and a present value in words: axes, curves, bands, levels and marks.
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
    /** Whether only the plot changes for now. */
    this.silent = false;
  }

  /** @param {string} text what the strip says at this step */
  say(text) {
    if (this.silent || this.said === text) return;
    this.value.textContent = this.said = text;
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

/**
 * Round values in a range, with as many digits as tell them apart.
 * @param {number} low @param {number} high @param {number} [count]
 * @returns {[number, string][]}
 */
function niceTicks(low, high, count = 4) {
  const rough = (high - low) / count;
  if (!(rough > 0) || !Number.isFinite(rough)) return [[low, number(low)]];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= rough) ?? rough;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const value = (first + i) * step;
    return [value, number(value, digits)];
  });
}
