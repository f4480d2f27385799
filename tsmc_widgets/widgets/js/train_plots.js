/** @file The plots of a training: loss, ESS, bounds on log Z, learned against optimal log psi. */

import { css, h, number, refill, write } from "./dom.js";
import { drawMarker, methodName, styleOf } from "./methods.js";
import {
  DASHED, Hover, LEFT, RIGHT, SHARE_TICKS, Strip, TOP, drawBand, drawPath, label, level, line, niceTicks, rangeOf, word,
} from "./plot.js";

/** @param {number} goal @returns {[number, string][]} */
function updateTicks(goal) {
  return [[0, "0"], [Math.round(goal / 2), String(Math.round(goal / 2))], [goal, `update ${goal}`]];
}

/** What must be known of a loss to read it: NVI's compares means, and is small from the start. */
const REMARKS = new Map([["ctl", " (up to a constant)"], ["nvi", " (need not fall)"]]);

/** Loss per update. With several methods each has a scale of its own. */
export class LossPlot extends Strip {
  static about = ["Loss", "loss", "What each update makes smaller. Losses of different methods do not compare."];

  draw({ racers, chosen, goal, theme }) {
    const own = racers.length > 1;
    const ranges = racers.map((racer) => rangeOf(racer.loss.map(([, value]) => value)));
    const range = own ? [-0.05, 1.05] : ranges[0];
    const ticks = own ? [] : niceTicks(range[0], range[1], 3);
    const plot = this.axes(theme, [0, goal], range, updateTicks(goal), ticks);
    racers.forEach((racer, i) => {
      const [low, high] = ranges[i];
      const scaled = racer.loss.map(([at, value]) => [at, own ? (value - low) / (high - low) : value]);
      drawPath(plot, scaled, styleOf(racer.method, theme), racer === chosen ? 2 : 1.5);
    });
    const last = chosen.loss.at(-1);
    const value = last ? `${methodName(chosen.method)}: ${number(last[1], 3)} at update ${last[0]}` : "no update yet";
    const remark = last ? (REMARKS.get(chosen.method) ?? "") : "";
    this.say(`${value}${remark}${own ? "; each on its own scale" : ""}`);
  }
}

/** Effective sample size of each batch. */
export class EssPlot extends Strip {
  static about = [
    "ESS of the batch", "batch-ess",
    "Effective sample size of the texts that the twist's proposal writes, weighted for the target, " +
      "as a share of their number. 100 %: every text is worth the same.",
  ];

  draw({ racers, chosen, goal, theme, header }) {
    const plot = this.axes(theme, [0, goal], [0, 1], updateTicks(goal), SHARE_TICKS);
    for (const racer of racers) {
      const style = styleOf(racer.method, theme);
      drawPath(plot, racer.ess, style, racer === chosen ? 2 : 1.5);
      if (racer.from_base) for (const [at, share] of racer.ess) drawMarker(plot, style, plot.x(at), plot.y(share), { r: 2.5 });
    }
    const last = chosen.ess.at(-1);
    const size = chosen.from_base ? header.num_texts : header.batch_size;
    const what = chosen.from_base ? `of ${size} of its own texts, every ${header.every} updates` : `of ${size} texts`;
    this.say(last ? `${number(last[1] * size, 1)} ${what}` : "no update yet");
  }
}

/** Lower and upper bounds on log Z, with intervals, and log Z where it is known. */
export class BoundsPlot extends Strip {
  static about = ["Bounds on log Z", "bounds"];

  draw({ racers, chosen, goal, theme, header, logZ }) {
    const shown = racers.length > 1 ? [...racers.filter((r) => r !== chosen), chosen] : racers;
    const values = shown.flatMap(({ bounds }) => bounds.flatMap((row) => [row[1], row[4]]));
    const edges = chosen.bounds.flatMap((row) => [row[2], row[3], row[5], row[6]]);
    const range = rangeOf([...values, ...edges, logZ?.[0] ?? null]);
    const plot = this.axes(theme, [0, goal], range, updateTicks(goal), niceTicks(...range, 5));
    if (logZ) this._band(plot, logZ, goal, theme);
    for (const racer of shown) this._racer(plot, racer, theme, racer === chosen);
    this._name(plot, chosen, theme);
    if (logZ) level(plot, logZ[0], "log Z", theme.text);
    this.say(this._words(chosen, logZ, header));
  }

  /** @param {any} chosen @param {number[]} logZ @param {any} header */
  _words({ method, bounds }, logZ, header) {
    const [first, last] = [bounds[0], bounds.at(-1)];
    const sure = header.exact ? "exact" : `± ${number(logZ?.[1])} s.e. (rejection)`;
    const known = logZ ? `; log Z = ${number(logZ[0])} ${sure}` : "";
    if (!last) return `not measured yet${known}`;
    const gap = `${number(last[7] ?? Infinity)} ± ${number(last[8] ?? NaN)} s.e. nats`;
    const from = bounds.length > 1 ? `${number(first[7] ?? Infinity)} → ` : "";
    return `${methodName(method)}: gap ${from}${gap}${known}`;
  }

  /** The 95 % interval of log Z. @param {any} plot @param {number[]} logZ @param {number} goal @param {Theme} theme */
  _band(plot, [value, error], goal, theme) {
    const rows = [0, goal].map((at) => [at, value - 1.96 * error, value + 1.96 * error]);
    drawBand(plot, rows, theme.text, 0.14);
  }

  /** @param {any} plot @param {any} racer @param {Theme} theme @param {boolean} strong */
  _racer(plot, racer, theme, strong) {
    const style = styleOf(racer.method, theme);
    for (const side of strong ? [1, 4] : []) {
      const rows = racer.bounds.map((row) => [row[0], row[side + 1], row[side + 2]]);
      drawBand(plot, rows, style.colour, 0.22);
    }
    for (const side of [1, 4]) {
      const points = racer.bounds.map((row) => [row[0], row[side]]);
      drawPath(plot, points, style, strong ? 2.2 : 1.4);
      for (const [at, value] of points) {
        if (value !== null) drawMarker(plot, style, plot.x(at), plot.y(value), { hollow: side === 4, r: strong ? 3.5 : 2.5 });
      }
    }
  }

  /** Names beside the first points. @param {any} plot @param {any} racer @param {Theme} theme */
  _name(plot, racer, theme) {
    const first = racer.bounds[0];
    if (!first) return;
    const { colour } = styleOf(racer.method, theme);
    for (const [name, value, down] of [["upper ○", first[4], -9], ["lower ●", first[1], 17]]) {
      if (value !== null) label(plot, name, plot.x(0) + 8, plot.y(value) + down, colour);
    }
  }
}

/** @type {any[][]} */
const NONE = [];
/** Prefixes that are listed. */
const WORST = 5;

/** One prefix of the scatter in words. @param {any[]} point */
function prefixInWords([t, optimal, error, learned, text = ""]) {
  const sure = error > 0 ? ` ± ${number(error)} s.e.` : "";
  const residual = `${learned > optimal ? "+" : ""}${number(learned - optimal)}`;
  return `“${text}”, t = ${t}: log ψ ${number(learned)}, log ψ* ${number(optimal)}${sure}, residual ${residual} nats`;
}

/** Learned against optimal log psi, with the mean of each step removed from both. */
export class ScatterPlot extends Strip {
  static about = ["Learned log ψ against the optimal one", "scatter"];

  constructor() {
    super();
    this.found = h("p", { class: "pv-note tl-hover", role: "status" });
    this.worst = h("ol", {});
    this.list = h("details", { class: "tl-worst" }, h("summary", {}, `The ${WORST} worst prefixes`), this.worst);
    this.el.append(this.found, this.list);
    this.hover = new Hover(this.canvas, (mark) => write(this.found, mark ? prefixInWords(mark.of) : ""));
  }

  /** @param {any[][]} points */
  _rank(points) {
    const off = (/** @type {any[]} */ [, optimal, , learned]) => Math.abs(learned - optimal);
    refill(this.worst, points, () =>
      points.toSorted((a, b) => off(b) - off(a)).slice(0, WORST).map((point) => h("li", {}, prefixInWords(point))),
    );
    this.list.hidden = points.length === 0;
  }

  draw({ chosen, look, theme, note }) {
    const points = look?.points ?? NONE;
    const ends = points.flatMap(([, optimal, error, learned]) => [optimal - error, optimal + error, learned]);
    const [low, high] = rangeOf([...ends, -0.5, 0.5]);
    const ticks = niceTicks(low, high, 5);
    const plot = this.axes(theme, [low, high], [low, high], ticks, ticks);
    const { context, x, y, width } = plot;
    line(context, [[x(low), y(low)], [x(high), y(high)]], css(theme.muted), 1, DASHED);
    word(context, "↑ learned log ψ", LEFT + 6, TOP + 6, css(theme.muted), "left");
    word(context, "optimal log ψ* →", width - RIGHT - 4, y(low) - 6, css(theme.muted), "right");
    const style = styleOf(chosen.method, theme);
    const few = points.length < 60;
    this.hover.marks = [];
    for (const point of points) this.hover.add(x(point[1]), y(point[3]), point);
    this._rank(points);
    for (const [, optimal, error, learned] of points) {
      const bar = [-error, error].map((side) => [x(optimal + side), y(learned)]);
      if (error > 0) line(context, bar, css(style.colour, 0.55));
      drawMarker(plot, style, x(optimal), y(learned), { r: few ? 3 : 2.5, alpha: few ? 0.9 : 0.6 });
    }
    this.say(correlation(look, note));
  }
}

/** The correlation in words. @param {any} look @param {string} note */
function correlation(look, note) {
  if (!look?.points) return "not measured yet";
  const count = look.points.length;
  if (look.correlation === null) return `ψ is still constant; n = ${count}`;
  const said = `correlation ${number(look.correlation)}`;
  if (note.startsWith("exact")) return `${said} over all ${count} prefixes`;
  const [low, high] = look.interval;
  return low === null ? `${said}, n = ${count}` : `${said} (95 %: ${number(low)} to ${number(high)}), n = ${count}`;
}
