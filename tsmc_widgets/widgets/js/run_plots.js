/** @file Plots over runs and particles: running log Z hat, its spread, and the Lorenz curve. */

import { clamp, css, h, number, percent, plural, refill } from "./dom.js";
import { errorRows, spreadInWords } from "./measures.js";
import {
  BOTTOM, DASHED, LEFT, RIGHT, Strip, TOP, curve, dot, drawBand, drawPath, fill, label, level, line, niceTicks,
  stepTicks,
} from "./plot.js";

const TOP_SHARE = 0.1;
/** Nats up to which the interval of a pooled estimate covers what it promises, see PooledOverRuns. */
const TRUSTED_SPREAD = 0.4;

/** Lines of every run's log Z hat, what they say together, and what is known of log Z. */
export class LogZPlot extends Strip {
  static about = [
    "Running log Ẑ", "logz",
    "After step T this estimates log Z. Before, it estimates the log of the mass of p₀ψ at that step.",
  ];

  constructor() {
    super();
    this.key = new Key();
    this.el.append(this.key.el);
  }

  draw(view) {
    const { record, t, theme } = view;
    const { T, R, steps, exactLogZ, bracket } = record;
    const own = Array.from({ length: steps + 1 }, (_, s) => record.logZOf(s, record.header.run));
    const rows = R > 1 ? [] : errorRows(own, record);
    const [low, high] = widened([...record.range, ...rows.flatMap(([, ...ends]) => ends)], exactLogZ, bracket);
    const ticks = niceTicks(low, high, 4);
    const plot = this.axes(theme, [0, T], [low, high], stepTicks(T), ticks);
    const across = (/** @type {number} */ end) => [LEFT, plot.width - RIGHT].map((x) => [x, plot.y(end)]);
    if (bracket) bracketBand(plot, bracket, [low, high], theme, across);
    if (Number.isFinite(exactLogZ)) level(plot, exactLogZ, "", theme.orange);
    if (R > 1) this._others(plot, record, t, theme);
    else drawBand(plot, rows.slice(0, t + 1), theme.blue, 0.2);
    if (R > 1 && record.header.one_target) this._pooled(plot, record, t, theme);
    curve(plot, own, t, theme.blue);
    this.key.show({
      run: R > 1 ? "this run" : "",
      others: R > 1 ? plural(R - 1, "other run") : "",
      pooled: R > 1 && record.header.one_target ? `pooled, 95 % interval` : "",
      exact: Number.isFinite(exactLogZ) ? `exact log Z ${number(exactLogZ)}` : "",
      bracket: bracket ? `certified bracket ${interval(bracket)}` : "",
    });
    this.say(logZInWords(record, t));
  }

  /** @param {any} plot @param {any} record @param {number} t @param {Theme} theme */
  _others(plot, record, t, theme) {
    const { context, x, width, height } = plot;
    const { R, steps } = record;
    const paths = this._paths(plot, record);
    context.lineWidth = 1;
    context.lineJoin = "round";
    const strength = clamp(6 / R, 0.12, 0.4);
    for (const [from, to, share] of [[t, steps, 0.4], [0, t, 1]]) {
      if (to <= from) continue;
      context.save();
      context.beginPath();
      context.rect(x(from), 0, to === steps ? width : x(to) - x(from), height);
      context.clip();
      context.strokeStyle = css(theme.text, strength * share);
      for (const path of paths) context.stroke(path);
      context.restore();
    }
  }

  /**
   * Lines of the other runs, made once while neither they nor their places change.
   * @param {any} plot @param {any} record
   */
  _paths({ x, y }, record) {
    const { R, steps, header, everyLogZ } = record;
    const key = [everyLogZ, R, steps, header.run, x(0), x(steps), y(0), y(1)];
    if (this.known && key.every((value, i) => value === this.known[i])) return this.paths;
    this.known = key;
    this.paths = [];
    for (let r = 0; r < R; r++) {
      if (r === header.run) continue;
      const path = new Path2D();
      for (let s = 0; s <= steps; s++) {
        const value = record.logZOf(s, r);
        if (!Number.isFinite(value)) break;
        path.lineTo(x(s), y(value));
      }
      this.paths.push(path);
    }
    return this.paths;
  }

  /** @param {any} plot @param {any} record @param {number} t @param {Theme} theme */
  _pooled(plot, record, t, theme) {
    const at = (/** @type {Float64Array} */ values, /** @type {number} */ s) => (s === 0 ? 0 : values[s - 1]);
    const steps = Array.from({ length: t + 1 }, (_, s) => s);
    const ends = steps.map((s) => [s, at(record.pooledLow, s), at(record.pooledHigh, s)]);
    drawBand(plot, ends, theme.text, 0.2);
    drawPath(plot, steps.map((s) => [s, at(record.pooled, s)]), { colour: theme.text, dash: [] }, 1.5);
  }
}

/** @param {number[]} ends @param {number} [digits] */
function interval(ends, digits = 2) {
  return `[${ends.map((end) => number(end, digits)).join(", ")}]`;
}

/**
 * A range with room round it, that also shows the exact value; of a bracket only what is near.
 * @param {number[]} values @param {number | null} exact @param {number[] | null} bracket
 * @returns {[number, number]}
 */
function widened(values, exact, bracket) {
  const known = [...values, Number(exact ?? NaN)].filter(Number.isFinite);
  let [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [-1, 0];
  const span = Math.max(high - low, 0.1);
  const reach = [low - span, high + span];
  for (const end of bracket ?? []) {
    low = Math.min(low, clamp(end, ...reach));
    high = Math.max(high, clamp(end, ...reach));
  }
  const margin = Math.max(0.07 * (high - low), 0.25 - (high - low) / 2, 0.02);
  return [low - margin, high + margin];
}

/**
 * What lies between two certain ends of a range.
 * @param {any} plot @param {number[]} ends @param {number[]} shown @param {Theme} theme
 * @param {(end: number) => number[][]} across the line at an end, from side to side
 */
function bracketBand({ context }, ends, shown, theme, across) {
  const [low, high] = ends.map((end) => across(clamp(end, shown[0], shown[1])));
  fill(context, [...low, ...high.toReversed()], css(theme.orange, 0.08));
  for (const end of ends) {
    if (end >= shown[0] && end <= shown[1]) line(context, across(end), css(theme.orange, 0.7));
  }
}

/** @param {any} record @param {number} t */
function logZInWords(record, t) {
  const { R, header } = record;
  const own = record.logZOf(t, header.run);
  if (R === 1) {
    return `estimate ${number(own)} nats${spreadInWords(record, t)}`;
  }
  const mine = `run ${header.run + 1}: ${number(own)} nats`;
  if (!header.one_target) return `${mine}; every run has an observation, and so a log Z, of its own`;
  if (t === 0) return `${mine}; pooled: 0.00 nats`;
  const ends = [record.pooledLow[t - 1], record.pooledHigh[t - 1]];
  const known = ends.some(Number.isFinite) ? `, 95 % ${interval(ends)} nats` : " nats, interval unknown";
  return `pooled estimate ${number(record.pooled[t - 1])}${known}; ${mine}`;
}

/** What the lines of a plot are; those without a name are left out. */
class Key {
  constructor() {
    this.el = h("p", { class: "pv-note rp-key" });
  }

  /** @param {Record<string, string>} names */
  show(names) {
    const items = Object.entries(names).filter(([, name]) => name);
    refill(this.el, items.join(), () =>
      items.map(([kind, name]) => h("span", {}, h("span", { class: `rp-swatch rp-swatch-${kind}` }), name)),
    );
  }
}

/** Log Z hat of every run at the step on show, on a scale of its own. */
export class SpreadPlot extends Strip {
  static about = [
    "log Ẑ at this step, run by run", "spread",
    "Each dot is one run. How far they lie apart is how much one run can be trusted.",
  ];

  draw({ record, t, theme }) {
    const { R, T, header, exactLogZ, bracket } = record;
    const values = [...record.allAt(t)];
    const finite = values.filter(Number.isFinite);
    const ends = this._ends(record, t);
    const shown = [...finite, ...ends].filter(Number.isFinite);
    const xs = t === T ? widened(shown, exactLogZ, bracket) : widened(shown, null, null);
    const ticks = shown.length || (t === T && Number.isFinite(exactLogZ)) ? niceTicks(xs[0], xs[1], 4) : [];
    const plot = this.axes(theme, xs, [0, 1], ticks, []);
    const floor = Math.round(plot.height - BOTTOM) + 0.5;
    line(plot.context, [[LEFT, floor], [plot.width - RIGHT, floor]], css(theme.grid));
    if (t === T) this._truth(plot, record, xs, theme);
    this._lane(plot, record.pooled[t - 1] ?? 0, ends, R, record.logZOf(t, header.run), theme);
    this._dots(plot, values, header.run, theme);
    this.say(this._words(record, t, finite));
  }

  /** Ends of the interval in the upper lane. @param {any} record @param {number} t */
  _ends(record, t) {
    if (t === 0) return [0, 0];
    if (record.R > 1) return [record.pooledLow[t - 1], record.pooledHigh[t - 1]];
    const [value, spread] = [record.logZ[t - 1], record.logZSpread(t)];
    return [value - spread, value + spread];
  }

  /** @param {any} plot @param {any} record @param {number[]} xs @param {Theme} theme */
  _truth(plot, { exactLogZ, bracket }, xs, theme) {
    const upright = (/** @type {number} */ at) => [TOP - 6, plot.height - BOTTOM].map((y) => [plot.x(at), y]);
    if (bracket) bracketBand(plot, bracket, xs, theme, upright);
    if (Number.isFinite(exactLogZ)) line(plot.context, upright(exactLogZ), css(theme.orange), 1.5, DASHED);
  }

  /** The pooled estimate, or the one run's, with its interval. @param {any} plot @param {number} pooled @param {number[]} ends @param {number} R @param {number} own @param {Theme} theme */
  _lane({ context, x }, pooled, ends, R, own, theme) {
    const value = R > 1 ? pooled : own;
    if (!Number.isFinite(value)) return;
    const y = TOP + 4;
    const colour = css(R > 1 ? theme.text : theme.blue);
    if (ends.every(Number.isFinite)) {
      line(context, [[x(ends[0]), y], [x(ends[1]), y]], colour, 2);
      for (const end of ends) line(context, [[x(end), y - 4], [x(end), y + 4]], colour, 2);
    }
    if (R > 1) fill(context, [[0, -5], [5, 0], [0, 5], [-5, 0]].map(([dx, dy]) => [x(value) + dx, y + dy]), colour);
  }

  /** @param {any} plot @param {number[]} values @param {number} run @param {Theme} theme */
  _dots({ context, x, height, halo }, values, run, theme) {
    const floor = height - BOTTOM;
    const room = floor - TOP - 16;
    const radius = values.length > 150 ? 2 : 3.5;
    /** @type {Map<number, number[]>} */
    const piles = new Map();
    values.forEach((value, r) => {
      if (!Number.isFinite(value)) return;
      const bin = Math.round(x(value) / (2 * radius));
      piles.set(bin, [...(piles.get(bin) ?? []), r]);
    });
    for (const pile of piles.values()) {
      const pitch = Math.min(2 * radius, room / pile.length);
      // The run on show lies at the bottom of its pile, where nothing hides it.
      pile.sort((a, b) => Number(b === run) - Number(a === run));
      pile.forEach((r, i) => {
        const colour = r === run ? css(theme.blue) : css(theme.text, 0.38);
        dot(context, x(values[r]), floor - radius - 1 - i * pitch, r === run ? radius + 1 : radius, colour);
        context.strokeStyle = css(halo);
        context.lineWidth = 1;
        if (r === run) context.stroke();
      });
    }
  }

  /** @param {any} record @param {number} t @param {number[]} finite */
  _words(record, t, finite) {
    const { R, T, header, exactLogZ } = record;
    if (R === 1) {
      const others = header.replicates;
      return others ? `this run ± s.d. over ${others.runs} runs on other noise` : "one run: more show how far they differ";
    }
    if (finite.length === 0) return "log Ẑ = −∞ in all runs";
    const mean = finite.reduce((a, b) => a + b, 0) / finite.length;
    const squares = finite.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    const deviation = Math.sqrt(squares / (finite.length - 1));
    const parts = [finite.length > 1 ? `s.d. ${number(deviation)} nats over ${finite.length} runs` : "one run is left"];
    if (finite.length < R) parts.push(`${R - finite.length} died (log Ẑ = −∞)`);
    if (!header.one_target) return parts.join("; ");
    if (t === T && Number.isFinite(exactLogZ) && Number.isFinite(record.pooled[t - 1])) {
      parts.push(`pooled − exact: ${number(record.pooled[t - 1] - exactLogZ)} nats`);
    }
    if (t > 0 && deviation > TRUSTED_SPREAD) parts.push("so wide a spread makes the interval too narrow");
    return parts.join("; ");
  }
}

/** How unevenly the weight is spread: the share of the heaviest particles, one after the other. */
export class LorenzPlot extends Strip {
  static about = [
    "Lorenz curve of the weights", "lorenz",
    "Share of the weight (up) that the heaviest particles hold (across). Equal weights lie on the dashed line.",
  ];

  draw({ record, t, theme }) {
    const { K } = record;
    /** @type {[number, string][]} */
    const xTicks = [[0, "0"], [0.5, "50 %"], [1, "all particles"]];
    const yTicks = /** @type {[number, string][]} */ ([[0, "0"], [0.5, "50 %"], [1, "100 %"]]);
    const plot = this.axes(theme, [0, 1], [0, 1], xTicks, yTicks);
    const { context, x, y } = plot;
    line(context, [[x(0), y(0)], [x(1), y(1)]], css(theme.muted), 1, [4, 4]);
    const shares = lorenz(record.sortedWeights(t));
    if (!shares) return this.say("all weights are 0");
    if (K === 1) return this.say("one particle holds all the weight");
    const points = Array.from(shares, (/** @type {number} */ share, /** @type {number} */ k) => [x(k / K), y(share)]);
    fill(context, points, css(theme.blue, 0.14));
    line(context, points, css(theme.blue), 2);
    const held = heldBy(shares, TOP_SHARE);
    this._mark(plot, held, theme);
    this.say(`the heaviest 10 % of particles hold ${percent(held)} of the weight`);
  }

  /** @param {any} plot @param {number} held @param {Theme} theme */
  _mark(plot, held, theme) {
    const { context, x, y } = plot;
    const [px, py] = [x(TOP_SHARE), y(held)];
    line(context, [[px, y(0)], [px, py], [x(0), py]], css(theme.text, 0.6), 1, [2, 3]);
    dot(context, px, py, 4, css(theme.blue));
    context.textBaseline = "middle";
    // Right of the dot the curve goes up: below it there is room, except near the floor.
    label(plot, `10 % hold ${percent(held)}`, px + 9, Math.min(py + 10, y(0) - 8), theme.text);
  }
}

/**
 * Share of the weight that the heaviest 0, 1, .. K particles hold; null where all weights are 0.
 * @param {Float32Array} weights largest first
 */
function lorenz(weights) {
  if (!(weights[0] > 0)) return null;
  const shares = new Float64Array(weights.length + 1);
  weights.forEach((weight, k) => (shares[k + 1] = shares[k] + weight));
  const total = shares[weights.length];
  return shares.map((share) => share / total);
}

/**
 * Height of the Lorenz curve at a share of the particles, linear between particles.
 * @param {Float64Array} shares @param {number} part
 */
function heldBy(shares, part) {
  const at = part * (shares.length - 1);
  const below = Math.min(Math.floor(at), shares.length - 2);
  return shares[below] + (at - below) * (shares[below + 1] - shares[below]);
}
