/** @file Plots of one problem: bounds and gap against K, divergences, reward against cost, spread of runs. */

import { QUANTITIES_SHOWN, inFull } from "./compare_tables.js";
import { clamp, css, fitCanvas, h, measure, mix, number, percent, plural } from "./dom.js";
import { drawMarker, isDrawn, methodName, styleOf } from "./methods.js";
import {
  BOTTOM, DASHED, Hover, LEFT, RIGHT, SHARE_TICKS, Strip, TOP, drawBand, drawPath, fill, label, level, line, niceTicks,
  rangeOf, stepTicks, word,
} from "./plot.js";

const ROW = 24;

/** What all plots have: a strip, numbers under the pointer, and a note. */
class Plot extends Strip {
  /** @param {string[]} [about] title, name for the class, and the note */
  constructor([title, name, note = ""] = new.target.about) {
    super([title, name]);
    this.tip = h("div", { class: "cm-tip", hidden: "" });
    this.note = h("p", { class: "pv-note" }, note);
    this.el.append(this.tip, this.note);
    this.hover = new Hover(this.canvas, (mark) => this._tell(mark));
  }

  /** @param {{x: number, y: number, of: string} | null} mark */
  _tell(mark) {
    this.tip.hidden = !mark;
    if (!mark) return;
    this.tip.textContent = mark.of;
    this.tip.style.left = `${clamp(mark.x + 10, 0, Math.max(0, this.canvas.clientWidth - 190))}px`;
    this.tip.style.top = `${this.canvas.offsetTop + mark.y + 12}px`;
  }

  /** A marker, and what the pointer finds there. @param {any} plot @param {any} style @param {number} x @param {number} y @param {any} look @param {string} text */
  mark(plot, style, x, y, look, text) {
    drawMarker(plot, style, x, y, look);
    this.hover.add(x, y, text);
  }

  /** The measured cells of a method for each K. @param {any} view @param {string} method @param {string} quantity */
  bySize({ data, sizes, rule }, method, quantity) {
    const cells = sizes.map((/** @type {number} */ k) => data.find(method, quantity, k, rule)).filter(finite);
    return cells.map((/** @type {any} */ cell) => ({ ...cell, at: Math.log2(cell.size) }));
  }

  /** New axes, without the numbers that were under the pointer. @type {Strip["axes"]} */
  axes(...ranges) {
    this.hover.marks = [];
    return super.axes(...ranges);
  }

  /** Methods that this plot draws, the one brought out last. @param {any} view */
  drawn({ methods, chosen }) {
    const all = methods.filter(isDrawn);
    return [...all.filter((method) => method !== chosen), ...all.filter((method) => method === chosen)];
  }

  /** @param {string} method @param {any} view */
  style(method, { theme, chosen }) {
    const style = styleOf(method, theme);
    const pale = chosen && chosen !== method;
    const colour = pale ? mix(theme.background, style.colour, 0.35) : style.colour;
    return { ...style, colour, width: chosen === method ? 2.4 : 1.7 };
  }
}

function finite(cell) {
  return cell && Number.isFinite(cell.mean);
}

function ends(cell) {
  return Number.isFinite(cell.low) && Number.isFinite(cell.high) ? [cell.low, cell.high] : [cell.mean, cell.mean];
}

/** @param {number[]} sizes @returns {[number, string][]} */
function sizeTicks(sizes) {
  return sizes.map((size, i) => [Math.log2(size), i === sizes.length - 1 ? `K = ${size}` : String(size)]);
}

/** @param {number[]} sizes @returns {[number, number]} */
function sizeRange(sizes) {
  const [low, high] = [Math.log2(sizes[0] ?? 1), Math.log2(sizes.at(-1) ?? 2)];
  const room = 0.04 * (high - low) || 0.5;
  return [low - room, high + room];
}

/** Lower and upper bounds against K, with log Z where it is exact. */
export class BoundsByK extends Plot {
  static about = ["Bounds on log Z, nats", "bounds", "▼ lower, ▲ upper; shades: 95 % t-intervals."];

  draw(view) {
    const { data, sizes, theme } = view;
    const rows = this.drawn(view).flatMap((method) =>
      ["lower", "upper"].map((side) => ({ method, side, cells: this.bySize(view, method, side) })),
    );
    const middle = rows.flatMap(({ cells }) => cells.map((cell) => cell.mean));
    const some = rangeOf([...middle, data.exact], 0.25);
    const edges = rows.flatMap(({ cells }) => cells.flatMap(ends)).filter((end) => end > some[0] && end < some[1]);
    const range = rangeOf([...middle, ...edges, data.exact]);
    const plot = this.axes(theme, sizeRange(sizes), range, sizeTicks(sizes), niceTicks(...range, 5));
    clipped(plot, () => {
      for (const row of rows) this._band(plot, row, view);
      for (const row of rows) this._line(plot, row, view);
    });
    if (data.exact !== null) this._truth(plot, data.exact, sizes, theme);
    this.say(this._words(rows, data));
  }

  _band(plot, { method, cells }, view) {
    const { chosen, theme } = view;
    const band = cells.map((/** @type {any} */ cell) => [cell.at, ...ends(cell)]);
    const alpha = chosen === method ? 0.28 : chosen ? 0.04 : 0.13;
    drawBand(plot, band, styleOf(method, theme).colour, alpha);
  }

  _line(plot, { method, side, cells }, view) {
    const style = this.style(method, view);
    drawPath(plot, cells.map((/** @type {any} */ cell) => [cell.at, cell.mean]), style, style.width);
    for (const cell of cells) {
      const [x, y] = [plot.x(cell.at), plot.y(cell.mean)];
      const upper = side === "upper";
      this.mark(plot, { ...style, marker: upper ? "up" : "down" }, x, y, { r: 3.5, hollow: upper },
        `${methodName(method)}, K = ${cell.size}\n${side} ${inFull(cell, view.total)}`);
    }
  }

  /** The exact line, named where the bounds are still apart. @param {any} plot @param {number} value @param {number[]} sizes @param {Theme} theme */
  _truth(plot, value, sizes, theme) {
    level(plot, value, "", theme.text);
    const { x, y } = plot;
    const at = sizes.length > 1 ? (x(Math.log2(sizes[0])) + x(Math.log2(sizes[1]))) / 2 : x(Math.log2(sizes[0])) + 60;
    label(plot, `exact ${number(value, 3)}`, at, y(value) - 5, theme.text, "center");
  }

  _words(rows, data) {
    const endless = rows.filter(({ method, side }) => data.cells.some((/** @type {any} */ c) => c.method === method && c.quantity === side && !Number.isFinite(c.mean)));
    const dead = [...new Set(endless.map(({ method }) => methodName(method)))];
    if (!rows.some(({ cells }) => cells.length)) return "not measured yet";
    return dead.length ? `infinite, so not drawn, at some K: ${dead.join(", ")}` : "log Z lies between them, on average";
  }
}

/** Upper minus lower bound against K, both axes logarithmic. */
export class GapByK extends Plot {
  static about = [
    "Gap, nats (log scale)", "gap",
    "Bounds KL(q‖σ) + KL(σ‖q) of one SMC draw; equals it at K = 1. Bars: 95 %.",
  ];

  draw(view) {
    const { sizes, theme } = view;
    const rows = this.drawn(view).map((method, i, all) => ({
      method,
      dodge: (i - (all.length - 1) / 2) * 0.05,
      cells: this.bySize(view, method, "gap"),
    }));
    const means = rows.flatMap(({ cells }) => cells.map((cell) => cell.mean)).filter((mean) => mean > 1e-9);
    const floor = means.length ? Math.min(...means) / 2.5 : 0.01;
    const up = (/** @type {number} */ value) => Math.log10(Math.max(value, floor));
    const highs = rows.flatMap(({ cells }) => cells.map((cell) => ends(cell)[1])).filter((v) => v < 5 * Math.max(...means));
    const range = rangeOf([up(floor), ...[...means, ...highs].map(up)], 0.03);
    const plot = this.axes(theme, sizeRange(sizes), range, sizeTicks(sizes), decades(...range));
    clipped(plot, () => {
      for (const { method, cells, dodge } of rows) {
        const style = this.style(method, view);
        drawPath(plot, cells.map((/** @type {any} */ cell) => [cell.at + dodge, up(cell.mean)]), style, style.width);
        for (const cell of cells) this._cell(plot, cell, style, dodge, up, view);
      }
    });
    const below = rows.flatMap(({ cells }) => cells).filter((cell) => cell.mean <= floor).length;
    this.say(!rows.some(({ cells }) => cells.length) ? "needs upper bounds" : below ? `${below} at or near 0, drawn hollow at the floor` : "falls as K grows");
  }

  /** @param {any} plot @param {any} cell @param {any} style @param {number} dodge @param {(v: number) => number} up @param {any} view */
  _cell(plot, cell, style, dodge, up, view) {
    const [x, y] = [plot.x(cell.at + dodge), plot.y(up(cell.mean))];
    line(plot.context, ends(cell).map((end) => [x, plot.y(up(end))]), css(style.colour, 0.8), 1.2);
    this.mark(plot, style, x, y, { r: 3, hollow: Math.log10(Math.max(cell.mean, 1e-300)) < up(0) },
      `${methodName(cell.method)}, K = ${cell.size}\ngap ${inFull(cell, view.total)}`);
  }
}

/** @param {number} low @param {number} high @returns {[number, string][]} */
function decades(low, high) {
  const ticks = [];
  const steps = high - low < 1.5 ? [1, 2, 5] : [1];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const m of steps) {
      const value = m * 10 ** power;
      if (Math.log10(value) >= low && Math.log10(value) <= high) ticks.push([Math.log10(value), String(Number(value.toPrecision(1)))]);
    }
  }
  return /** @type {[number, string][]} */ (ticks);
}

/** Draw inside the axes alone. @param {any} plot @param {() => void} act */
function clipped({ context, width, height }, act) {
  context.save();
  context.beginPath();
  context.rect(LEFT - 4, 0, width - LEFT - RIGHT + 8, height - BOTTOM + 2);
  context.clip();
  act();
  context.restore();
}

/** Both divergences, a row a method. */
export class Forest extends Plot {
  static about = [
    "Divergences of q and σ, nats", "forest",
    "● KL(σ‖q): what q misses. ○ KL(q‖σ): what q writes and σ does not. Bars: 95 %.",
  ];

  draw(view) {
    const { data, theme, methods } = view;
    const both = [["KL(σ||q)", 0.33, false], ["KL(q||σ)", 0.67, true]];
    const shown = methods.filter((/** @type {string} */ m) => both.some(([name]) => data.find(m, name, 0, "")));
    this.canvas.style.height = `${Math.max(3, shown.length) * (ROW + 6) + 34}px`;
    measure(this.canvas);
    const cells = shown.flatMap((/** @type {string} */ m) => both.map(([name]) => data.find(m, name, 0, ""))).filter(finite);
    const middle = cells.map((/** @type {any} */ cell) => cell.mean);
    const reach = 2.5 * Math.max(...middle, 0.1);
    const edges = cells.flatMap(ends).map((/** @type {number} */ end) => clamp(end, -reach / 4, reach));
    const range = rangeOf([0, ...middle, ...edges], 0.04);
    const left = 96;
    const { context, width, height } = fitCanvas(this.canvas);
    const x = (/** @type {number} */ v) => left + ((v - range[0]) / (range[1] - range[0])) * (width - left - 34);
    const plot = { context, x, width, height, halo: theme.background };
    this._axis(plot, niceTicks(...range, 4), theme);
    this.hover.marks = [];
    shown.forEach((/** @type {string} */ method, /** @type {number} */ i) => {
      const top = 6 + i * (ROW + 6);
      const style = this.style(method, view);
      context.textBaseline = "middle";
      const strong = view.chosen === method || !view.chosen;
      word(context, methodName(method), left - 12, top + (ROW + 6) / 2, css(strong ? theme.text : theme.muted), "right");
      for (const [name, at, hollow] of both) {
        this._cell(plot, data.find(method, name, 0, ""), style, top + at * (ROW + 6), hollow, view);
      }
    });
    context.textBaseline = "alphabetic";
    this.say(shown.length ? "0 where q is σ" : "not measured yet");
  }

  /** @param {any} plot @param {[number, string][]} ticks @param {Theme} theme */
  _axis({ context, x, height }, ticks, theme) {
    context.font = `11px ${theme.font}`;
    for (const [value, name] of ticks) {
      const at = Math.round(x(value)) + 0.5;
      line(context, [[at, 4], [at, height - BOTTOM]], css(Math.abs(value) < 1e-12 ? theme.muted : theme.grid));
      word(context, name, at, height - 3, css(theme.muted), "center");
    }
  }

  /** @param {any} plot @param {any} cell @param {any} style @param {number} y @param {boolean} hollow @param {any} view */
  _cell(plot, cell, style, y, hollow, view) {
    if (!cell) return;
    const { context, x, width } = plot;
    if (!Number.isFinite(cell.mean)) {
      word(context, `${hollow ? "○" : "●"} ∞ ▷`, width - 4, y, css(style.colour), "right");
      this.hover.add(width - 14, y, `${methodName(cell.method)}\n${QUANTITIES_SHOWN[cell.quantity][0]}: infinite for certain`);
      return;
    }
    line(context, ends(cell).map((end) => [clamp(x(end), 92, width - 8), y]), css(style.colour), 2);
    this.mark(plot, { ...style, marker: "circle" }, x(cell.mean), y, { r: 4, hollow },
      `${methodName(cell.method)}\n${QUANTITIES_SHOWN[cell.quantity][0]} ${inFull(cell, view.total)}`);
  }
}

/** Mean log phi of what q writes, against how far q has gone from p0. */
export class Reward extends Plot {
  static about = [
    "↑ mean log φ of q, nats, against KL(q‖p₀), nats →", "reward",
    "What leaving p₀ buys. Bars: 95 %.",
  ];

  draw(view) {
    const { data, theme } = view;
    const points = this.drawn(view)
      .map((method) => [method, data.find(method, "KL(q||p0)", 0, ""), data.find(method, "E_q[log φ]", 0, "")])
      .filter(([, kl, reward]) => finite(kl) && finite(reward));
    const range = (/** @type {1 | 2} */ at) => {
      const cells = points.map((point) => point[at]);
      const some = rangeOf(cells.map((c) => c.mean), 0.6);
      return rangeOf([...cells.map((c) => c.mean), ...cells.flatMap(ends).map((end) => clamp(end, ...some))], 0.08);
    };
    const [xs, ys] = [range(1), range(2)];
    const plot = this.axes(theme, xs, ys, niceTicks(...xs, 4), niceTicks(...ys, 5));
    clipped(plot, () => {
      for (const [method, kl, reward] of points) {
        const style = this.style(method, view);
        const [x, y] = [plot.x(kl.mean), plot.y(reward.mean)];
        line(plot.context, ends(kl).map((end) => [plot.x(end), y]), css(style.colour, 0.8), 1.2);
        line(plot.context, ends(reward).map((end) => [x, plot.y(end)]), css(style.colour, 0.8), 1.2);
        this.mark(plot, style, x, y, { r: 4.5 },
          `${methodName(method)}\nKL(q‖p₀) ${inFull(kl, view.total)}\nmean log φ ${inFull(reward, view.total)}`);
      }
    });
    const endless = this.drawn(view).filter((m) => data.find(m, "E_q[log φ]", 0, "")?.mean === -Infinity);
    const dead = endless.length ? `; −∞ and not drawn: ${endless.map(methodName).join(", ")}` : "";
    this.say(points.length || endless.length ? `${plural(points.length, "method")}${dead}` : "not measured yet");
  }
}

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
