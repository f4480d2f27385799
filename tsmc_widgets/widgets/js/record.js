/** @file The record of a run as typed arrays, read from pages that arrive while the run goes on. */

const ARRAYS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  float32: Float32Array,
  float64: Float64Array,
};

/** Whether and how a path has ended at a cell. */
const GOING = 0;
const ENDS = 1;
const ENDED = 2;

/**
 * @typedef {object} NextTokens the likeliest next tokens of each distinct prefix of a step
 * @property {ArrayLike<number>} rows each particle's prefix
 * @property {number} width tokens of a prefix
 * @property {ArrayLike<number>} tokens
 * @property {Float32Array} logP
 * @property {Float32Array} logQ
 * @property {Float32Array} logPsi
 */

/** A page of bytes: its facts and its columns. @param {DataView} data */
function readPage(data) {
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
 * What every view of a run needs of it. Steps count from 1 to T as in the paper; column s of an
 * array holds step s + 1, and step 0 is the prompt alone. Every (step, particle) array is
 * step-major: `s * K + k`.
 */
class RunColumns {
  /** @param {any} header */
  constructor(header) {
    const [K, T] = [header.num_particles, header.num_steps];
    this.id = header.id;
    this.K = K;
    this.T = T;
    this.steps = 0;
    this.ancestors = new Uint32Array(T * K);
    this.weights = new Float32Array(T * K);
    this.resampled = new Uint8Array(T);
    this.ess = new Float64Array(T);
    this.logZ = new Float64Array(T);
    this.logZError = new Float64Array(T);
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
    const record = same ? before : new this(header);
    record.use(header);
    decoded.forEach((page, i) => record.read[i] !== page && record.absorb((record.read[i] = page)));
    record.steps = steps;
    record.forget();
    return record;
  }

  /** @param {any} header */
  use(header) {
    this.header = header;
    const exact = header.exact_log_z;
    this.exactLogZ = exact === null || exact === undefined ? null : Number(exact);
  }

  /** Arrays by the name of their column: of particles, and of whole steps. */
  get wide() {
    return { ancestors: this.ancestors, weights: this.weights };
  }

  get narrow() {
    const { resampled, ess, logZ, logZError } = this;
    return { resampled, ess, log_z: logZ, log_z_error: logZError };
  }

  /** @param {{facts: any, columns: any}} page */
  absorb({ facts: { first }, columns }) {
    for (const [name, array] of Object.entries(this.wide)) array.set(columns[name], first * this.K);
    for (const [name, array] of Object.entries(this.narrow)) array.set(columns[name], first);
  }

  /** Drop what was computed of a shorter record. */
  forget() {
    /** @type {any} */
    this._genealogy = this._order = this._sorted = null;
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
    if (this._sorted && this._sorted.t === t) return this._sorted.values;
    const { K } = this;
    const values = t === 0 ? new Float32Array(K).fill(1 / K) : this.weights.slice((t - 1) * K, t * K);
    values.sort().reverse();
    this._sorted = { t, values };
    return values;
  }
}

/** One run with its tokens. */
class RunRecord extends RunColumns {
  /** @param {any} header */
  constructor(header) {
    super(header);
    const { K, T } = this;
    /** @type {string[]} */
    this.texts = [];
    /** @type {string[]} */
    this.words = [];
    /** @type {NextTokens[]} */
    this.tables = [];
    this.tokens = new Uint32Array(T * K);
    this.logIncrement = new Float32Array(T * K);
    this.logPsi = new Float32Array(T * K);
    this.logP = new Float32Array(T * K);
    this.logQ = new Float32Array(T * K);
    this.gain = new Float32Array(T * K);
    this.ending = new Uint8Array(T * K);
    this.families = new Uint32Array(T * K);
    this.places = new Uint32Array(T * K);
  }

  get wide() {
    const { tokens, logIncrement, logPsi, logP, logQ } = this;
    const more = { tokens, log_increment: logIncrement, log_psi: logPsi, log_p: logP, log_q: logQ };
    return { ...super.wide, ...more };
  }

  /** @param {{facts: any, columns: any}} page */
  absorb(page) {
    super.absorb(page);
    const { first, steps, known, texts } = page.facts;
    texts.forEach((/** @type {string} */ text, /** @type {number} */ i) => {
      this.texts[known + i] = text;
      this.words[known + i] = readable(text);
    });
    this._readTables(page.facts, page.columns);
    for (let s = first; s < first + steps; s++) this._derive(s);
  }

  /** @param {any} facts @param {any} columns */
  _readTables({ first, steps, table_width: width }, columns) {
    if (!width) return;
    let at = 0;
    for (let i = 0; i < steps; i++) {
      const end = at + columns.table_sizes[i] * width;
      this.tables[first + i] = {
        width,
        rows: columns.table_rows.subarray(i * this.K, (i + 1) * this.K),
        tokens: columns.table_tokens.subarray(at, end),
        logP: columns.table_log_p.subarray(at, end),
        logQ: columns.table_log_q.subarray(at, end),
        logPsi: columns.table_log_psi.subarray(at, end),
      };
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
}
