/** @file The record of a run as typed arrays, read from pages that arrive while the run goes on. */

import { bringsBlank, readable } from "./dom.js";

const ARRAYS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  float32: Float32Array,
  float64: Float64Array,
};

/** Whether and how a path has ended at a cell. */
export const GOING = 0;
export const ENDS = 1;
export const ENDED = 2;

/**
 * Arrays of a record: the column of the pages that fills each, if one does, its type, and what a
 * step has one value of: each particle, each run, or itself. Pages of the run panels have no tokens,
 * pages of the particle view no other runs; arrays that no page fills stay zero.
 * @type {Record<string, [string, any, "K" | "R" | ""]>}
 */
const COLUMNS = {
  ancestors: ["ancestors", Uint32Array, "K"],
  weights: ["weights", Float32Array, "K"],
  tokens: ["tokens", Uint32Array, "K"],
  logIncrement: ["log_increment", Float32Array, "K"],
  logPsi: ["log_psi", Float32Array, "K"],
  logP: ["log_p", Float32Array, "K"],
  logQ: ["log_q", Float32Array, "K"],
  gain: ["", Float32Array, "K"],
  drawn: ["", Float32Array, "K"],
  changed: ["", Float32Array, "K"],
  ending: ["", Uint8Array, "K"],
  families: ["", Uint32Array, "K"],
  places: ["", Uint32Array, "K"],
  resampled: ["resampled", Uint8Array, ""],
  ess: ["ess", Float64Array, ""],
  logZ: ["log_z", Float64Array, ""],
  everyLogZ: ["every_log_z", Float64Array, "R"],
  pooled: ["pooled", Float64Array, ""],
  pooledLow: ["pooled_low", Float64Array, ""],
  pooledHigh: ["pooled_high", Float64Array, ""],
};

/**
 * @typedef {object} NextTokens the likeliest next tokens of each distinct prefix of a step
 * @property {ArrayLike<number>} rows each particle's prefix
 * @property {number} width tokens of a prefix
 * @property {ArrayLike<number>} tokens
 * @property {Float32Array} logP
 * @property {Float32Array} logQ
 * @property {Float32Array} logPsi
 * @property {Float32Array} value log of the sum of p0 psi, by prefix
 */

/** A page of bytes: its facts and its columns. @param {DataView} data */
export function readPage(data) {
  // The bytes arrive at any offset, typed arrays need aligned ones: hence the copy.
  const buffer = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  const start = 4 + new DataView(buffer).getUint32(0, true);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, start - 4)));
  /** @type {Record<string, any>} */
  const columns = {};
  for (const { name, dtype, offset, length } of facts.columns) {
    columns[name] = new ARRAYS[dtype](buffer, start + offset, length);
  }
  return { facts, columns };
}

/**
 * One run, as far as it is recorded. Steps count from 1 to T as in the paper; column s of an array
 * holds step s + 1, and step 0 is the prompt alone. Arrays are step-major: `s * K + k`, `s * R + r`.
 */
export class RunRecord {
  constructor(header) {
    this.id = header.id;
    this.K = header.num_particles;
    this.T = header.num_steps;
    this.R = header.runs.length;
    this.steps = 0;
    for (const [name, [, Type, of]] of Object.entries(COLUMNS)) {
      this[name] = new Type(this.T * (of ? this[of] : 1));
    }
    /** @type {string[]} */
    this.texts = [];
    /** As cells show them. @type {string[]} */
    this.words = [];
    this.spaced = false;
    /** @type {NextTokens[]} */
    this.tables = [];
    /** What each step costs, see `loss`. @type {any[]} */
    this.losses = [];
    /** @type {any[]} */
    this.read = [];
    this.use(header);
  }

  /**
   * The record that these traits tell of: the one before, grown, or a new one; null while pages
   * and header are not of one run.
   * @param {any} before @param {any} header @param {any[]} pages
   */
  static of(before, header, pages) {
    if (!header || header.steps_done === undefined) return null;
    const size = header.page_steps;
    const needed = pages.slice(0, Math.ceil(header.steps_done / size));
    const same = before && before.id === header.id;
    const decoded = needed.map((data, i) => {
      if (same && before.read[i]?.data === data) return before.read[i];
      return data && data.byteLength ? { data, ...readPage(data) } : null;
    });
    const steps = decoded.reduce((sum, page) => sum + (page?.facts.steps ?? 0), 0);
    if (steps !== header.steps_done) return null;
    if (decoded.some((page) => page.facts.id !== header.id)) return null;
    const record = same ? before : new RunRecord(header);
    record.use(header);
    decoded.forEach((page, i) => record.read[i] !== page && record._absorb((record.read[i] = page)));
    record.steps = steps;
    // What was computed of a shorter record.
    record._genealogy = record._order = record._sorted = record._range = null;
    return record;
  }

  use(header) {
    this.header = header;
    const exact = header.exact_log_z;
    this.exactLogZ = exact === null || exact === undefined ? null : Number(exact);
    this.bracket = header.bracket ? header.bracket.map(Number) : null;
  }

  /** @param {{facts: any, columns: any}} page */
  _absorb({ facts, columns }) {
    const { first, steps, known, texts } = facts;
    for (const [name, [column, , of]] of Object.entries(COLUMNS)) {
      if (column in columns) this[name].set(columns[column], first * (of ? this[of] : 1));
    }
    if (!texts) return;
    texts.forEach((/** @type {string} */ text, /** @type {number} */ i) => {
      this.texts[known + i] = text;
    });
    const spaced = this.spaced || texts.some(bringsBlank);
    const from = spaced === this.spaced ? known : 0;
    this.spaced = spaced;
    for (let i = from; i < known + texts.length; i++) this.words[i] = readable(this.texts[i], spaced);
    this._readTables(facts, columns);
    for (let s = first; s < first + steps; s++) this._derive(s);
  }

  _readTables({ first, steps, table_width: width }, columns) {
    if (!width) return;
    let [at, row] = [0, 0];
    for (let i = 0; i < steps; i++) {
      const end = at + columns.table_sizes[i] * width;
      this.tables[first + i] = {
        width,
        rows: columns.table_rows.subarray(i * this.K, (i + 1) * this.K),
        tokens: columns.table_tokens.subarray(at, end),
        logP: columns.table_log_p.subarray(at, end),
        logQ: columns.table_log_q.subarray(at, end),
        logPsi: columns.table_log_psi.subarray(at, end),
        value: columns.table_log_value.subarray(row, row + columns.table_sizes[i]),
      };
      row += columns.table_sizes[i];
      at = end;
    }
  }

  /** What follows from the columns: gains of log psi, ends of texts, families. @param {number} s */
  _derive(s) {
    const { K, ancestors, families, places } = this;
    const eos = this.header.eos;
    const row = s * K;
    const starts = new Uint32Array(K + 1);
    for (let k = 0; k < K; k++) {
      const parent = row - K + ancestors[row + k];
      this.gain[row + k] = this.logPsi[row + k] - (s > 0 ? this.logPsi[parent] : 0);
      const before = s > 0 ? this.ending[parent] : GOING;
      this.ending[row + k] = before ? ENDED : eos >= 0 && this.tokens[row + k] === eos ? ENDS : GOING;
      this._split(s, k);
      if (s > 0) starts[places[parent] + 1] += 1;
    }
    // Children stand in the order of their parents, so that lines between columns never cross.
    for (let i = 0; i < K; i++) starts[i + 1] += starts[i];
    for (let k = 0; k < K; k++) {
      const place = s > 0 ? starts[places[row - K + ancestors[row + k]]]++ : k;
      places[row + k] = place;
      families[row + place] = k;
    }
  }

  /**
   * A log increment is what the twist thinks of the text before the token, log sum p0 psi_t - log
   * psi_{t-1}, and what it thinks of the token drawn, log p0 psi_t / q - log sum p0 psi_t. Where a
   * text ends, phi stands for psi_t and neither is known.
   * @param {number} s @param {number} k
   */
  _split(s, k) {
    const at = s * this.K + k;
    const table = this.tables[s];
    const ends = s + 1 === this.T || this.ending[at] === ENDS;
    if (ends || this.ending[at] === ENDED) return;
    const value = table ? table.value[table.rows[k]] : NaN;
    this.drawn[at] = this.logP[at] + this.logPsi[at] - this.logQ[at] - value;
    this.changed[at] = value - (this.logPsi[at] - this.gain[at]);
  }

  /** Normalised weight of a particle before step s + 1 draws its token. @param {number} s @param {number} k */
  weightBefore(s, k) {
    if (s === 0 || this.resampled[s]) return 1 / this.K;
    return this.weights[(s - 1) * this.K + this.ancestors[s * this.K + k]];
  }

  /**
   * Variance of the log increments of step s + 1 under the weights before it, in nats squared, as the
   * sum of the covariances of its parts with it; the weight that dies apart; and the worst particle.
   * @param {number} s
   */
  loss(s) {
    if (this.losses[s]) return this.losses[s];
    const { K, T, logIncrement, ending } = this;
    const sums = { total: 0, drawn: 0, changed: 0, end: 0 };
    let [mass, mean, killed, worst] = [0, 0, 0, 0];
    for (let k = 0; k < K; k++) {
      const [at, weight] = [s * K + k, this.weightBefore(s, k)];
      if (logIncrement[at] < logIncrement[s * K + worst]) worst = k;
      if (!Number.isFinite(logIncrement[at])) killed += weight;
      else [mass, mean] = [mass + weight, mean + weight * logIncrement[at]];
    }
    for (let k = 0; k < K; k++) {
      const at = s * K + k;
      if (!Number.isFinite(logIncrement[at]) || mass === 0) continue;
      const off = (this.weightBefore(s, k) * (logIncrement[at] - mean / mass)) / mass;
      sums.total += off * logIncrement[at];
      if (s + 1 === T || ending[at] === ENDS) sums.end += off * logIncrement[at];
      else [sums.drawn, sums.changed] = [sums.drawn + off * this.drawn[at], sums.changed + off * this.changed[at]];
    }
    return (this.losses[s] = { ...sums, killed, worst });
  }

  /**
   * Normalised weight of a particle after step t; equal ones before the first.
   * @param {number} t
   * @param {number} k
   */
  weight(t, k) {
    return t === 0 ? 1 / this.K : this.weights[(t - 1) * this.K + k];
  }

  /** Normalised weights after step t, largest first. @param {number} t */
  sortedWeights(t) {
    if (this._sorted?.t === t) return this._sorted.values;
    const { K } = this;
    const values = t === 0 ? new Float32Array(K).fill(1 / K) : this.weights.slice((t - 1) * K, t * K);
    values.sort().reverse();
    this._sorted = { t, values };
    return values;
  }

  /** Standard deviation of log Z hat over runs after step t; NaN where one run is all there is. @param {number} t */
  logZSpread(t) {
    return t === 0 ? 0 : (this.header.replicates?.spread[t - 1] ?? NaN);
  }

  /** Log Z hat of a run after step t. @param {number} t @param {number} r */
  logZOf(t, r) {
    return t === 0 ? 0 : this.everyLogZ[(t - 1) * this.R + r];
  }

  /** Log Z hat of all runs after step t. @param {number} t */
  allAt(t) {
    return t === 0 ? new Float64Array(this.R) : this.everyLogZ.subarray((t - 1) * this.R, t * this.R);
  }

  /** Least and largest finite log Z hat of all runs and steps, 0 among them. @returns {[number, number]} */
  get range() {
    if (this._range) return this._range;
    let [low, high] = [0, 0];
    for (let i = 0; i < this.steps * this.R; i++) {
      const value = this.everyLogZ[i];
      if (!Number.isFinite(value)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    return (this._range = [low, high]);
  }
}
