/** @file Measures of a run against the step: ESS, log Z hat, surviving ancestors; and the sorted weights. */

import { css, number, percent, plural } from "./dom.js";
import { LEFT, RIGHT, Strip, curve, level, resamplingMarks, stepTicks } from "./plot.js";

/** Strips of a run. */
export const MEASURES = {
  ess: () =>
    new Strip(
      "Effective sample size (ESS)",
      "ess",
      "How many equally weighted particles the population is worth. ▼ marks resampling, which begins " +
        "the step after the ESS fell below the dashed threshold.",
    ),
  weights: () =>
    new Strip(
      "Weights, sorted",
      "weights",
      "Normalised weights of the particles, largest first: they sum to 1.",
    ),
  ancestors: () =>
    new Strip(
      "Surviving ancestors",
      "ancestors",
      "How many of the K tokens drawn at each step have a descendant at the step on show.",
    ),
};

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
      const box = canvas.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
      if (record()) onScrub(Math.round(share * record().T));
    };
    canvas.addEventListener("pointerdown", scrub, { signal });
    canvas.addEventListener("pointermove", scrub, { signal });
  }
}

/** @param {Strip} strip @param {any} view */
export function drawEss(strip, { record, t, theme }) {
  const { K, T, header } = record;
  const threshold = header.ess_threshold;
  const limit = threshold === null ? 0 : threshold * K;
  const yTicks = /** @type {[number, string][]} */ ([[0, "0"], [K, String(K)]]);
  const named = number(limit, limit % 1 ? 1 : 0);
  if (limit > 0.15 * K && limit < 0.85 * K) yTicks.push([limit, named]);
  const plot = strip.axes(theme, [0, T], [0, K], stepTicks(T), yTicks);
  resamplingMarks(plot, record, t, theme);
  if (threshold) level(plot, limit, "", theme.orange);
  curve(plot, [K, ...record.ess.subarray(0, record.steps)], t, theme.blue);
  const value = t === 0 ? K : record.ess[t - 1];
  const rule = threshold && K > 1 ? `; ▼ when below ${named}` : "";
  strip.say(`${number(value, K < 1000 ? 1 : 0)} of ${K}${rule}`);
}

/** @param {Strip} strip @param {any} view */
export function drawWeights(strip, { record, t, theme }) {
  const { K } = record;
  const weights = record.sortedWeights(t);
  const largest = weights[0];
  const ceiling = Math.min(1, Math.max(largest, 2 / K)) || 1;
  /** @type {[number, string][]} */
  const xTicks = K === 1 ? [[0.5, "1"]] : [[0, "largest"], [K, `${K} particles`]];
  const yTicks = /** @type {[number, string][]} */ ([[0, "0"], [ceiling, percent(ceiling)]]);
  const plot = strip.axes(theme, [0, K], [0, ceiling], xTicks, yTicks);
  const { context, x, y } = plot;
  context.fillStyle = css(theme.blue);
  const gap = x(1) - x(0) > 4 ? 1 : 0;
  for (let k = 0; k < K && weights[k] > 0; k++) {
    context.fillRect(x(k), y(weights[k]), Math.max(0.5, x(k + 1) - x(k) - gap), y(0) - y(weights[k]));
  }
  if (K > 1) level(plot, 1 / K, `average 1/K = ${percent(1 / K)}`, theme.muted);
  strip.say(largest > 0 ? `largest ${percent(largest)}` : "all weights are 0");
}

/** @param {Strip} strip @param {any} view */
export function drawAncestors(strip, { record, t, theme, genealogy }) {
  const { K, T } = record;
  const { survivors } = genealogy;
  const plot = strip.axes(theme, [0, T], [0, K], stepTicks(T), [[0, "0"], [K, String(K)]]);
  const { context, x, y } = plot;
  resamplingMarks(plot, record, t, theme);
  context.fillStyle = css(theme.blue, 0.85);
  survivors.forEach((count, s) => {
    context.fillRect(x(s) + 0.5, y(count), Math.max(1, x(1) - x(0) - 1), y(0) - y(count));
  });
  strip.say(t === 0 ? "none yet" : `${survivors[0]} of ${plural(K, "first token")} left`);
}
