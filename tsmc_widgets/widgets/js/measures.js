/** @file Measures of one run: ESS, log Z hat and surviving ancestors at every step, and sorted weights. */

import { css, h, number, percent, plural } from "./dom.js";
import { DASHED, Strip, curve, drawBand, label, level, line, rect, resamplingMarks, shareAt, stepTicks } from "./plot.js";

/**
 * Let a pointer on strips over the steps move the play head.
 * @param {Strip[]} strips @param {() => any} record @param {(t: number) => void} onScrub
 * @param {AbortSignal} signal
 */
export function letScrub(strips, record, onScrub, signal) {
  for (const { canvas } of strips) {
    canvas.classList.add("pv-scrubs");
    const scrub = (/** @type {PointerEvent} */ event) => {
      if (event.type === "pointermove" && event.buttons !== 1) return;
      if (record()) onScrub(Math.round(shareAt(canvas, event) * record().T));
    };
    canvas.addEventListener("pointerdown", scrub, { signal });
    canvas.addEventListener("pointermove", scrub, { signal });
  }
}

/** A pinned run's values at steps 0, 1, .. dashed over the live one's. @param {any} plot @param {(number | null)[]} values @param {number} T @param {Theme} theme */
function overlay({ context, x, y }, values, T, theme) {
  const points = values.slice(0, T + 1).map((value, t) => [x(t), value === null ? NaN : y(value)]);
  line(context, points, css(theme.text, 0.75), 1.5, DASHED);
}

/** ESS at every step, with its threshold and resampling. */
export class EssStrip extends Strip {
  static about = [
    "Effective sample size (ESS)", "ess",
    "How many equally weighted particles the population is worth. ▼ marks resampling, which begins " +
      "the step after the ESS fell below the dashed threshold.",
  ];

  draw({ record, t, theme, beside }) {
    const { K, T, header } = record;
    const threshold = header.ess_threshold;
    const limit = threshold === null ? 0 : threshold * K;
    const yTicks = /** @type {[number, string][]} */ ([[0, "0"], [K, String(K)]]);
    const named = number(limit, limit % 1 ? 1 : 0);
    if (limit > 0.15 * K && limit < 0.85 * K) yTicks.push([limit, named]);
    const plot = this.axes(theme, [0, T], [0, K], stepTicks(T), yTicks);
    resamplingMarks(plot, record, t, theme);
    if (threshold) level(plot, limit, "", theme.orange);
    // As shares of K, where the numbers of particles differ.
    if (beside) overlay(plot, [K, ...beside.ess.map((value) => (value * K) / beside.size)], T, theme);
    curve(plot, [K, ...record.ess.subarray(0, record.steps)], t, theme.blue);
    const value = t === 0 ? K : record.ess[t - 1];
    const rule = threshold && K > 1 ? `; ▼ when below ${named}` : "";
    const pinned = beside ? `; A (dashed) ${number(beside.ess[Math.max(0, Math.min(t, beside.ess.length) - 1)], 1)} of ${beside.size}` : "";
    this.say(`${number(value, K < 1000 ? 1 : 0)} of ${K}${pinned}${rule}`);
  }
}

const PARTS = /** @type {const} */ ([["drawn", "token drawn"], ["changed", "twist changed its value"], ["end", "φ at the end"]]);

/** What each step does to the spread of the weights, and by what. */
export class LossStrip extends Strip {
  static about = [
    "Where weight is lost", "loss",
    "Variance of the log increments of a step, in nats², under the weights before it, and each part's share " +
      "(its covariance with the whole). Token drawn: log p₀ψ/q against its mean; 0 where q follows ψ, so that the " +
      "token is not to blame. Twist changed its value: what ψₜ thinks of the text before the token, against ψₜ₋₁. " +
      "Click a bar: the step, the worst particle first.",
  ];

  constructor() {
    super();
    const keys = PARTS.map(([part, name]) => h("span", { class: `pv-part pv-part-${part}` }, name));
    this.key = h("span", { class: "pv-note pv-parts" }, ...keys);
    this.el.querySelector("figcaption")?.append(this.key);
    /** In words, where there is no key. */
    this.colours = ` (blue: ${PARTS[0][1]}, orange: ${PARTS[1][1]}, grey: ${PARTS[2][1]})`;
  }

  draw({ record, t, theme }) {
    const { T, steps } = record;
    const losses = Array.from({ length: steps }, (_, s) => record.loss(s));
    const most = Math.max(...losses.map(({ total }) => total), 1e-3);
    const ticks = /** @type {[number, string][]} */ ([[0, "0"], [most, number(most, most < 1 ? 2 : 1)]]);
    const { context, x, y } = this.axes(theme, [0, T], [0, most], stepTicks(T), ticks);
    const colours = { drawn: theme.blue, changed: theme.orange, end: theme.muted };
    const wide = Math.max(1, x(1) - x(0) - 2);
    losses.forEach((loss, s) => {
      let floor = 0;
      const known = Number.isFinite(loss.drawn + loss.changed);
      for (const [part] of PARTS) {
        // Where no table was recorded all of it is of unknown origin.
        const share = known || part === "end" ? Math.max(0, loss[part]) : part === "drawn" ? loss.total - loss.end : 0;
        const colour = known || part === "end" ? colours[part] : theme.muted;
        rect(context, x(s) + 1, y(floor + share), wide, y(floor) - y(floor + share), css(colour, s < t ? 0.9 : 0.3));
        floor += share;
      }
      if (loss.killed > 0) label({ context, halo: theme.background }, "×", x(s + 0.5), 8, theme.text, "center");
    });
    this.say(t === 0 ? "" : lossInWords(record, t));
  }
}

/** What step t cost, and by what. @param {any} record @param {number} t */
function lossInWords(record, t) {
  const loss = record.loss(t - 1);
  const died = loss.killed > 0 ? `; ${percent(loss.killed)} of the weight died (×)` : "";
  const shares = PARTS.filter(([part]) => loss[part] > 0.005 * loss.total)
    .map(([part, name]) => `${percent(Math.min(1, loss[part] / loss.total))} ${name}`);
  const parts = loss.total > 1e-6 && Number.isFinite(loss.drawn) ? `: ${shares.join(", ")}` : "";
  return `${number(loss.total)} nats²${parts}${died}`;
}

/** Weights at the step on show, largest first. */
export class WeightsStrip extends Strip {
  static about = ["Weights, sorted", "weights", "Normalised weights of the particles, largest first: they sum to 1."];

  draw({ record, t, theme }) {
    const { K } = record;
    const weights = record.sortedWeights(t);
    const largest = weights[0];
    const ceiling = Math.min(1, Math.max(largest, 2 / K)) || 1;
    /** @type {[number, string][]} */
    const xTicks = K === 1 ? [[0.5, "1"]] : [[0, "largest"], [K, `${K} particles`]];
    const yTicks = /** @type {[number, string][]} */ ([[0, "0"], [ceiling, percent(ceiling)]]);
    const plot = this.axes(theme, [0, K], [0, ceiling], xTicks, yTicks);
    const { context, x, y } = plot;
    context.fillStyle = css(theme.blue);
    const gap = x(1) - x(0) > 4 ? 1 : 0;
    for (let k = 0; k < K && weights[k] > 0; k++) {
      context.fillRect(x(k), y(weights[k]), Math.max(0.5, x(k + 1) - x(k) - gap), y(0) - y(weights[k]));
    }
    if (K > 1) level(plot, 1 / K, `average 1/K = ${percent(1 / K)}`, theme.muted);
    this.say(largest > 0 ? `largest ${percent(largest)}` : "all weights are 0");
  }
}

/** Ancestors of each step that have descendants at the step on show. */
export class AncestorsStrip extends Strip {
  static about = [
    "Surviving ancestors", "ancestors",
    "How many of the K tokens drawn at each step have a descendant at the step on show.",
  ];

  draw({ record, t, theme, genealogy, beside }) {
    const { K, T } = record;
    const { survivors } = genealogy;
    const plot = this.axes(theme, [0, T], [0, K], stepTicks(T), [[0, "0"], [K, String(K)]]);
    const { context, x, y } = plot;
    resamplingMarks(plot, record, t, theme);
    context.fillStyle = css(theme.blue, 0.85);
    survivors.forEach((count, s) => {
      context.fillRect(x(s) + 0.5, y(count), Math.max(1, x(1) - x(0) - 1), y(0) - y(count));
    });
    if (beside && t === T) overlay(plot, [K, ...beside.survivors.map((count) => (count * K) / beside.size)], T, theme);
    this.say(t === 0 ? "none yet" : `${survivors[0]} of ${plural(K, "first token")} left`);
  }
}

/** One run's log Z hat, and how far others lie apart. */
export class RunLogZStrip extends Strip {
  static about = [
    "Running log Ẑ (estimate)", "logz",
    "One run's estimate of the log of the mean of φ. Band: one standard deviation over runs that differ " +
      "in noise alone, which are taken once this run is done. Their mean is on average a lower bound on log Z.",
  ];

  draw({ record, t, theme, beside }) {
    const { T, exactLogZ } = record;
    const values = [0, ...record.logZ.subarray(0, record.steps)];
    const rows = errorRows(values, record);
    const finite = [...rows.flatMap(([, ...ends]) => ends), ...(beside?.log_z ?? [])].filter(Number.isFinite);
    if (Number.isFinite(exactLogZ)) finite.push(exactLogZ);
    let [low, high] = [Math.min(...finite), Math.max(...finite)];
    if (high - low < 0.1) [low, high] = [low - 0.05, high + 0.05];
    const digits = high - low < 1 ? 2 : 1;
    const ticks = /** @type {[number, string][]} */ ([low, high].map((v) => [v, number(v, digits)]));
    const margin = 0.08 * (high - low);
    const plot = this.axes(theme, [0, T], [low - margin, high + margin], stepTicks(T), ticks);
    if (Number.isFinite(exactLogZ)) {
      const above = exactLogZ > (low + high) / 2;
      level(plot, exactLogZ, `exact ${number(exactLogZ)}`, theme.text, above);
    }
    drawBand(plot, rows.slice(0, t + 1), theme.blue, 0.2);
    if (beside) overlay(plot, [0, ...beside.log_z], T, theme);
    curve(plot, values, t, theme.blue);
    this.say(`${number(values[t])} nats${spreadInWords(record, t)}`);
  }
}

/** How far runs on other noise lie apart after step t, and at T what all say of log Z, with its interval. @param {any} record @param {number} t */
export function spreadInWords(record, t) {
  const others = record.header.replicates;
  if (!others || t === 0) return "";
  const died = others.dead ? `, ${others.dead} of ${others.runs} runs died` : "";
  const [pooled, low, high] = [others.pooled, others.low, others.high].map(Number);
  if (t === record.T && (Number.isFinite(low) || Number.isFinite(high))) {
    return `; ${others.runs} runs pooled ${number(pooled)}, 95 % ${number(low)} to ${number(high)}${died}`;
  }
  const spread = record.logZSpread(t);
  return Number.isFinite(spread) ? ` ± ${number(spread)} (s.d. over ${others.runs} runs)` : died;
}

/** The error of one run's log Z hat after step t, short. @param {any} record @param {number} t */
export function errorInWords(record, t) {
  const spread = record.logZSpread(t);
  return Number.isFinite(spread) ? ` ± ${number(spread)} (s.d. of ${record.header.replicates.runs} runs)` : "";
}

/**
 * A run's estimates with one standard deviation over runs less and more, as rows of a band.
 * @param {number[]} values at steps 0, 1, .. @param {any} record
 */
export function errorRows(values, record) {
  return values.map((value, t) => {
    const spread = record.logZSpread(t) || 0;
    return [t, value - spread, value + spread];
  });
}
