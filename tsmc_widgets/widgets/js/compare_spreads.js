/** @file Plots of how runs spread: ESS and surviving ancestors step by step, and log Z_hat over runs. */

import { Plot, clipped } from "./compare_plots.js";
import { css, number, percent } from "./dom.js";
import { methodName } from "./methods.js";
import { BOTTOM, DASHED, SHARE_TICKS, TOP, drawPath, fill, label, line, niceTicks, rangeOf, stepTicks } from "./plot.js";

/** A share of K, step by step. */
export class Profile extends Plot {
  /** @param {string[]} about title and name @param {string} quantity */
  constructor(about, quantity) {
    super(about);
    this.quantity = quantity;
  }

  draw(view) {
    const { data, size, rule, theme } = view;
    const rows = this.drawn(view).map((method) => {
      const mine = data.profiles.filter((/** @type {any[]} */ row) => row[0] === method && row[2] === size && row[3] === this.quantity);
      return [method, (mine.find((row) => row[1] === rule) ?? mine[0])?.[4] ?? []];
    });
    const steps = Math.max(1, ...rows.map(([, values]) => values.length));
    const plot = this.axes(theme, [Math.min(1, steps - 1), steps], [0, 1], stepTicks(steps, 1), SHARE_TICKS);
    for (const [method, values] of rows) {
      const style = this.style(method, view);
      drawPath(plot, values.map((/** @type {number} */ v, /** @type {number} */ i) => [i + 1, v]), style, style.width);
      values.forEach((/** @type {number} */ v, /** @type {number} */ i) => {
        const text = `${methodName(method)}, step ${i + 1}\n${percent(v)} of K = ${size}`;
        this.mark(plot, style, plot.x(i + 1), plot.y(v), { r: 2 }, text);
      });
    }
    const some = rows.some(([, values]) => values.length);
    this.say(some ? `share of K = ${size}, mean of all runs` : "recorded with “profiles, single runs”");
  }
}

/** How log Z_hat spreads over runs. */
export class Spread extends Plot {
  static about = ["log Ẑ of single runs, nats", "spread", "Share of the runs in each bin."];

  draw(view) {
    const { data, size, rule, theme, methods } = view;
    const mine = data.histograms.filter((/** @type {any[]} */ row) => row[1] === size);
    const found = mine.find((/** @type {any[]} */ row) => row[0] === rule) ?? mine[0];
    const [, , low, width, rows] = found ?? ["", size, 0, 1, []];
    const known = new Map(rows.map(([method, counts, dead]) => [method, { counts, dead }]));
    const shown = this.drawn(view).filter((method) => known.has(method));
    const count = rows[0]?.[1].length ?? 1;
    const shares = new Map(shown.map((method) => {
      const { counts, dead } = known.get(method);
      const total = counts.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, dead);
      return [method, { bars: counts.map((/** @type {number} */ c) => c / total), total, dead }];
    }));
    const tops = [...shares.values()].map(({ bars }) => Math.max(0.01, ...bars)).sort((a, b) => b - a);
    // A method whose runs all agree is a spike, beside which others could not be seen.
    const cut = tops.length > 1 && tops[0] > 3 * tops[1];
    const top = cut ? 1.5 * tops[1] : tops[0] ?? 0.01;
    const exact = data.exact === null ? [] : [data.exact];
    const range = rangeOf([low, low + width * count, ...exact], 0.03);
    const plot = this.axes(theme, range, [0, top * 1.05], niceTicks(...range, 5), shareTicks(top));
    clipped(plot, () => {
      for (const method of shown) this._steps(plot, method, shares.get(method), [low, width], view);
    });
    if (exact.length && rows.length) upright(plot, exact[0], "exact", theme.text);
    const dead = methods.filter((/** @type {string} */ m) => known.get(m)?.dead).map((/** @type {string} */ m) => `${methodName(m)} ${known.get(m).dead} of ${shares.get(m).total}`);
    const said = dead.length ? `K = ${size}; died: ${dead.join(", ")}` : `K = ${size}, all seeds`;
    this.say(rows.length ? said + (cut ? "; the highest bar is cut" : "") : "recorded with “profiles, single runs”");
  }

  /** @param {any} plot @param {string} method @param {any} share @param {number[]} bins @param {any} view */
  _steps(plot, method, { bars }, [low, width], view) {
    const style = this.style(method, view);
    const points = [[low, 0]];
    bars.forEach((/** @type {number} */ bar, /** @type {number} */ i) => points.push([low + i * width, bar], [low + (i + 1) * width, bar]));
    points.push([low + bars.length * width, 0]);
    const { context, x, y } = plot;
    const alpha = view.chosen === method ? 0.3 : view.chosen ? 0.04 : 0.12;
    fill(context, points.map(([at, up]) => [x(at), y(up)]), css(style.colour, alpha));
    drawPath(plot, points, style, view.chosen === method ? 2 : 1.4);
    bars.forEach((/** @type {number} */ bar, /** @type {number} */ i) => {
      const from = low + i * width;
      if (bar > 0) this.hover.add(x(from + width / 2), Math.max(y(bar), TOP), `${methodName(method)}\n${percent(bar)} of runs in [${number(from)}, ${number(from + width)}]`);
    });
  }
}

/** @param {number} top @returns {[number, string][]} */
function shareTicks(top) {
  return niceTicks(0, top * 1.05, 3).map(([value]) => [value, value === 0 ? "0" : percent(value)]);
}

/** A dashed upright with its name. @param {any} plot @param {number} at @param {string} name @param {Rgb} colour */
function upright(plot, at, name, colour) {
  const { context, x, height, width } = plot;
  line(context, [[x(at), TOP], [x(at), height - BOTTOM]], css(colour), 1.5, DASHED);
  const right = x(at) > width * 0.6;
  label(plot, name, x(at) + (right ? -5 : 5), TOP + 8, colour, right ? "right" : "left");
}
