/** @file Where the columns of the grid stand, how wide they are, and which part of it is in sight. */

import { clamp, probe } from "./dom.js";
import { GOING } from "./record.js";

export const ROW_HEIGHT = 22;
export const HEADER_HEIGHT = 26;
export const HEAD_WIDTH = 150;
const CELL_MIN = 24;
const CELL_MAX = 104;
const CELL_PADDING = 11;
/** Between two columns: room for ribbons where particles were resampled. */
const RIBBON_WIDTH = 54;
const GAP = 3;
/** Share of a column's tokens that fit where not all can; the others end in an ellipsis. */
const FITTING = 0.985;

/** An emoji may be made of several code points. */
const CLUSTERS = new Intl.Segmenter();

export class Columns {
  constructor() {
    /** @type {number[]} */
    this.wordWidths = [];
    /** Left edge of each column, its gap included; and the end of the last. */
    this.edges = [0];
    /** @type {number[]} */
    this.gaps = [];
    /** @type {Map<number, string>[]} */
    this.fitted = [];
    this.room = 0;
  }

  /**
   * Widths of the columns, from their tokens; each word is measured once.
   * @param {RunRecord} record @param {Theme} theme @param {string} layout @param {number} room
   */
  measure(record, theme, layout, room) {
    const context = /** @type {CanvasRenderingContext2D} */ (probe);
    context.font = `12px ${theme.font}`;
    const known = `${theme.font} ${record.id} ${record.spaced}`;
    if (this.known !== known) this.wordWidths = [];
    [this.font, this.known, this.room] = [theme.font, known, room];
    for (let i = this.wordWidths.length; i < record.words.length; i++) {
      this.wordWidths.push(context.measureText(record.words[i]).width);
    }
    this.gaps = Array.from({ length: record.T }, (_, s) =>
      layout === "slots" && s < record.steps && record.resampled[s] ? RIBBON_WIDTH : GAP,
    );
    this._lay(record, 1);
    if (this.edges[record.T] > room) this._lay(record, FITTING);
    this.fitted = Array.from({ length: record.T }, () => new Map());
  }

  /** @param {RunRecord} record @param {number} share of the tokens of a column that must fit */
  _lay(record, share) {
    const { K, T, tokens, ending } = record;
    const planned = quantile(this.wordWidths, 0.5);
    this.edges = [0];
    for (let s = 0; s < T; s++) {
      const widths = [];
      for (let i = s * K; s < record.steps && i < (s + 1) * K; i++) {
        if (ending[i] === GOING) widths.push(this.wordWidths[tokens[i]]);
      }
      const wide = s < record.steps ? quantile(widths, share) : planned;
      const cell = Math.ceil(clamp(wide + CELL_PADDING, CELL_MIN, CELL_MAX));
      this.edges.push(this.edges[s] + this.gaps[s] + cell);
    }
  }

  /** @param {number} s */
  left(s) {
    return this.edges[s] + this.gaps[s];
  }

  /** @param {number} s */
  width(s) {
    return this.edges[s + 1] - this.edges[s] - this.gaps[s];
  }

  get end() {
    return this.edges[this.edges.length - 1];
  }

  /** A word as it fits into a column. @param {RunRecord} record @param {number} s @param {number} token */
  fit(record, s, token) {
    const room = this.width(s) - 6;
    if (this.wordWidths[token] <= room) return record.words[token];
    let text = this.fitted[s].get(token);
    if (text === undefined) {
      const context = /** @type {CanvasRenderingContext2D} */ (probe);
      context.font = `12px ${this.font}`;
      const letters = Array.from(CLUSTERS.segment(record.words[token]), ({ segment }) => segment);
      do letters.pop();
      while (letters.length && context.measureText(`${letters.join("")}…`).width > room);
      text = `${letters.join("")}…`;
      this.fitted[s].set(token, text);
    }
    return text;
  }

  /** Columns in sight. @param {number} left where the grid is scrolled to */
  between(left) {
    const T = this.edges.length - 1;
    let [from, to] = [0, T];
    while (from < T && this.edges[from + 1] <= left) from++;
    while (to > from && this.edges[to - 1] >= left + this.room) to--;
    return { from, to };
  }

  /** The column at a place of the grid, or -1. @param {number} x */
  at(x) {
    const s = this.edges.findIndex((edge) => edge > x) - 1;
    return s >= 0 && x >= this.left(s) ? s : -1;
  }

  /** Furthest scroll: no word is cut at the left edge while the last column is whole. */
  get furthest() {
    const least = this.end - this.room;
    return this.edges.find((edge) => edge >= least) ?? 0;
  }

  /**
   * Where to scroll so that the column of a step is in sight.
   * @param {number} t @param {number} at where the grid is scrolled to
   */
  follow(t, at) {
    const s = Math.max(0, t - 1);
    const right = this.edges[Math.min(s + 1, this.edges.length - 1)];
    if (right > at + this.room) {
      const least = right - this.room;
      return Math.min(this.furthest, this.edges.find((edge) => edge >= least) ?? least);
    }
    if (this.edges[s] < at) {
      if (t <= 1) return 0;
      const least = clamp(this.edges[s] - this.room / 3, 0, this.furthest);
      return this.edges.findLast((edge) => edge <= least) ?? 0;
    }
    return at;
  }
}

/** @param {number[]} values @param {number} share */
function quantile(values, share) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}
