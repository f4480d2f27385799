/** @file Small plots: axes, lines, bands, levels, labels and marks on a canvas, with a value in words. */

import { clamp, css, fitCanvas, h, number } from "./dom.js";

/** Margins of every plot, in pixels. */
export const LEFT = 42;
export const RIGHT = 10;
export const TOP = 10;
export const BOTTOM = 17;
export const DASHED = [5, 4];

/** @typedef {ReturnType<Strip["axes"]>} Plot context, scales x and y, size, and colour behind labels */

/** A title with the present value in words, and a canvas. A subclass says in `about` what it is. */
export class Strip {
  /** @param {string[]} [about] title, name for the class, and what it means for the tooltip */
  constructor([title, name, meaning = ""] = new.target.about) {
    this.value = h("span", { class: "pv-strip-value" });
    this.canvas = h("canvas", { role: "img" });
    const caption = h("figcaption", {}, h("span", { class: "pv-strip-title" }, title), this.value);
    this.el = h("figure", { class: `pv-strip pv-strip-${name}` }, caption, this.canvas);
    if (meaning) this.el.title = meaning;
    this.title = title;
    /** Whether only the plot changes for now. */
    this.silent = false;
  }

  /** @param {string} text the value at this step */
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
    const y = (/** @type {number} */ v) => height - BOTTOM - ((v - ys[0]) / (ys[1] - ys[0] || 1)) * tall;
    context.font = `11px ${theme.font}`;
    context.fillStyle = css(theme.muted);
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const [value, label] of yTicks) {
      const at = Math.round(y(value)) + 0.5;
      line(context, [[LEFT, at], [width - RIGHT, at]], css(theme.grid));
      context.fillText(label, LEFT - 6, at);
    }
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    for (const [value, label] of xTicks) {
      const half = context.measureText(label).width / 2;
      context.fillText(label, clamp(x(value), half, width - half), height - 3);
    }
    return { context, x, y, width, height, halo: theme.background };
  }
}

/** Pixels from which on a pointer is at a mark. */
const NEAR = 14;

/** Which mark of a plot is under the pointer. */
export class Hover {
  /** @param {HTMLCanvasElement} canvas @param {(mark: {x: number, y: number, of: any} | null) => void} tell */
  constructor(canvas, tell) {
    /** @type {{x: number, y: number, of: any}[]} */
    this.marks = [];
    canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
      const away = (/** @type {any} */ { x, y }) => Math.hypot(x - offsetX, y - offsetY);
      const nearest = this.marks.reduce((best, mark) => (!best || away(mark) < away(best) ? mark : best), /** @type {any} */ (null));
      tell(nearest && away(nearest) <= NEAR ? nearest : null);
    });
    canvas.addEventListener("pointerleave", () => tell(null));
  }

  /** @param {number} x @param {number} y @param {any} of what the mark stands for */
  add(x, y, of) {
    if (Number.isFinite(x) && Number.isFinite(y)) this.marks.push({ x, y, of });
  }
}

/**
 * A line through points in pixels, broken where one is not finite.
 * @param {CanvasRenderingContext2D} context @param {number[][]} points @param {string} colour
 * @param {number} [width] @param {number[]} [dash]
 */
export function line(context, points, colour, width = 1, dash = []) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.beginPath();
  for (const [i, [x, y]] of points.entries()) {
    if (!Number.isFinite(y)) continue;
    if (Number.isFinite(points[i - 1]?.[1])) context.lineTo(x, y);
    else context.moveTo(x, y);
  }
  context.stroke();
  context.setLineDash([]);
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {number} width @param {number} height @param {string} colour */
export function rect(context, x, y, width, height, colour) {
  context.fillStyle = colour;
  context.fillRect(x, y, width, height);
}

/** @param {CanvasRenderingContext2D} context @param {string} text @param {number} x @param {number} y @param {string} colour @param {CanvasTextAlign} align */
export function word(context, text, x, y, colour, align) {
  context.fillStyle = colour;
  context.textAlign = align;
  context.fillText(text, x, y);
}

/** A triangle that points down. @param {CanvasRenderingContext2D} context @param {number} x @param {number} top @param {number} bottom @param {number} half its width @param {string} colour */
export function arrow(context, x, top, bottom, half, colour) {
  fill(context, [[x - half, top], [x + half, top], [x, bottom]], colour);
}

/** A polygon. @param {CanvasRenderingContext2D} context @param {number[][]} corners @param {string} colour */
export function fill(context, corners, colour) {
  context.fillStyle = colour;
  context.beginPath();
  for (const [x, y] of corners) context.lineTo(x, y);
  context.fill();
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {number} r @param {string} colour */
export function dot(context, x, y, r, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, r, 0, 7);
  context.fill();
}

/**
 * A word with the background's colour round it, so that lines behind it do not hide it.
 * @param {any} plot @param {string} text @param {number} x @param {number} y @param {Rgb} colour
 * @param {CanvasTextAlign} [align]
 */
export function label({ context, halo }, text, x, y, colour, align = "left") {
  context.textAlign = align;
  context.strokeStyle = css(halo);
  context.lineWidth = 4;
  context.strokeText(text, x, y);
  word(context, text, x, y, css(colour), align);
}

/** Where on its axis, which runs from 0 to 1, a pointer is over a plot. @param {Element} canvas @param {MouseEvent} event */
export function shareAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
}

/** Ticks of an axis of shares. @type {[number, string][]} */
export const SHARE_TICKS = [[0, "0 %"], [0.5, "50 %"], [1, "100 %"]];

/** Ticks of the step axis. @param {number} T @param {number} [first] step @returns {[number, string][]} */
export function stepTicks(T, first = 0) {
  const ticks = T < 4 ? [first, T] : [first, Math.round((first + T) / 2), T];
  return [...new Set(ticks)].map((t) => [t, t === T ? `step ${t}` : String(t)]);
}

/**
 * A curve over the steps: recorded part pale, part up to the shown step strong, a dot at the head.
 * @param {any} plot @param {number[]} values at steps 0..n @param {number} t @param {Rgb} colour
 */
export function curve({ context, x, y }, values, t, colour) {
  const points = values.map((v, i) => [x(i), y(v)]);
  context.lineJoin = "round";
  line(context, points, css(colour, 0.28), 2);
  line(context, points.slice(0, t + 1), css(colour), 2);
  if (points[t] && Number.isFinite(points[t][1])) dot(context, points[t][0], points[t][1], 3.5, css(colour));
}

/**
 * A line through points of the plot in a method's style; null breaks it.
 * @param {any} plot @param {(number | null)[][]} points @param {{colour: Rgb, dash: number[]}} style
 * @param {number} [width]
 */
export function drawPath({ context, x, y }, points, { colour, dash }, width = 2) {
  context.lineJoin = "round";
  const places = points.map(([at, value]) => [x(at), value === null ? NaN : y(value)]);
  line(context, places, css(colour), width, dash);
}

/**
 * The area between two curves, broken where an end is unknown; a single interval is a short bar.
 * @param {any} plot @param {(number | null)[][]} rows [x, low, high] @param {Rgb} colour @param {number} alpha
 */
export function drawBand({ context, x, y }, rows, colour, alpha) {
  /** @type {number[][][]} */
  const parts = [[]];
  for (const row of rows) {
    if (row.every(Number.isFinite)) parts.at(-1)?.push(/** @type {any} */ (row));
    else parts.push([]);
  }
  for (const part of parts) {
    const above = part.map(([at, , high]) => [x(at), y(high)]);
    const below = part.map(([at, low]) => [x(at), y(low)]).toReversed();
    if (part.length > 1) fill(context, [...above, ...below], css(colour, alpha));
    if (rows.length > 1 || part.length === 0) continue;
    rect(context, above[0][0] - 3, above[0][1], 6, below[0][1] - above[0][1], css(colour, alpha));
  }
}

/** @param {any} plot @param {RunRecord} record @param {number} t @param {Theme} theme */
export function resamplingMarks({ context, x, height }, record, t, theme) {
  // Marks of neighbouring steps shrink rather than run together.
  const half = clamp(0.5 * (x(1) - x(0)), 1, 4);
  for (let s = 0; s < record.steps; s++) {
    if (!record.resampled[s]) continue;
    const strength = s < t ? 1 : 0.35;
    // Resampling stands at the start of step s + 1, on the weights of step s.
    const pale = css(theme.orange, (0.35 * strength * half) / 4);
    line(context, [[x(s), TOP], [x(s), height - BOTTOM]], pale, 1.5);
    arrow(context, x(s), 2, TOP - 1, half, css(theme.orange, strength));
  }
}

/**
 * A dashed level with its name.
 * @param {any} plot @param {number} value @param {string} name @param {Rgb} colour @param {boolean} [below]
 */
export function level(plot, value, name, colour, below = false) {
  const { context, y, width } = plot;
  line(context, [[LEFT, y(value)], [width - RIGHT, y(value)]], css(colour), 1.5, DASHED);
  if (name) label(plot, name, width - RIGHT - 2, y(value) + (below ? 12 : -4), colour, "right");
}

/**
 * Round values in a range, with as many digits as tell them apart.
 * @param {number} low @param {number} high @param {number} [count]
 * @returns {[number, string][]}
 */
export function niceTicks(low, high, count = 4) {
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

/** A range with a margin. @param {(number | null)[]} values @param {number} [margin] share of the range @returns {[number, number]} */
export function rangeOf(values, margin = 0.06) {
  const known = /** @type {number[]} */ (values.filter(Number.isFinite));
  if (known.length === 0) return [0, 1];
  let [low, high] = [Math.min(...known), Math.max(...known)];
  if (high - low < 1e-3) [low, high] = [low - 0.05, high + 0.05];
  const room = margin * (high - low);
  return [low - room, high + room];
}
