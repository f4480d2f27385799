/** @file The record of a run as typed arrays, and the genealogy read from its ancestors. */

const ARRAYS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  float32: Float32Array,
  float64: Float64Array,
};

/**
 * One run. Steps count from 1 to T as in the paper; column s of an array holds step s + 1, and
 * step 0 is the prompt alone. Every (step, particle) array is step-major: `s * K + k`.
 */
class RunRecord {
  /** @param {any} header @param {DataView} data */
  constructor(header, data) {
    // The bytes arrive at any offset, typed arrays need aligned ones: hence the copy.
    const buffer = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
    /** @type {Record<string, any>} */
    const columns = {};
    for (const { name, dtype, offset, length } of header.columns) {
      columns[name] = new ARRAYS[dtype](buffer, offset, length);
    }
    this.header = header;
    this.id = header.run_id;
    this.K = header.num_particles;
    this.T = header.num_steps;
    this.steps = header.steps_done;
    this.words = header.token_texts.map(readable);
    this.exactLogZ = columns.exact_log_z ? columns.exact_log_z[0] : null;
    this.tokens = columns.tokens;
    this.ancestors = columns.ancestors;
    this.weights = columns.weights;
    this.logIncrement = columns.log_increment;
    this.logPsi = columns.log_psi;
    this.logP = columns.log_p;
    this.resampled = columns.resampled;
    this.ess = columns.ess;
    this.logZ = columns.log_z;
    this.logZError = columns.log_z_error;
    this.sampleWeights = columns.sample_weights;
    this.sampleLogPhi = columns.sample_log_phi;
    /** @type {any} */
    this._paths = this._order = this._sorted = null;
  }

  /** Whether these can be the bytes of this header. @param {any} header @param {any} data */
  static fits(header, data) {
    return Boolean(header && header.columns && data && data.byteLength === header.num_bytes);
  }

  /**
   * Genealogy of the particles at step t: for column s and particle k the slot of k's ancestor
   * there, whether a slot has a descendant at t, and how many slots of each column have one.
   * @param {number} t
   */
  genealogy(t) {
    if (this._paths && this._paths.t === t) return this._paths;
    const { K } = this;
    const slots = new Uint32Array(t * K);
    const alive = new Uint8Array(t * K);
    const survivors = new Uint32Array(t);
    for (let s = t - 1; s >= 0; s--) {
      const row = s * K;
      for (let k = 0; k < K; k++) {
        const slot = s === t - 1 ? k : this.ancestors[row + K + slots[row + K + k]];
        slots[row + k] = slot;
        survivors[s] += 1 - alive[row + slot];
        alive[row + slot] = 1;
      }
    }
    this._paths = { t, slots, alive, survivors };
    return this._paths;
  }

  /** Slots of one particle's ancestors at steps 1..t. @param {number} t @param {number} slot */
  lineage(t, slot) {
    const path = new Uint32Array(t);
    for (let s = t - 1; s >= 0; s--) {
      path[s] = slot;
      slot = this.ancestors[s * this.K + slot];
    }
    return path;
  }

  /**
   * Whether the path of particle k has ended by column s.
   * @param {number} s
   * @param {Uint32Array} slots of the genealogy
   * @param {number} k
   */
  endsAt(s, slots, k) {
    return this.tokens[s * this.K + slots[s * this.K + k]] === this.header.eos;
  }

  /**
   * Normalised weight of a particle after step t; equal ones before the first.
   * @param {number} t
   * @param {number} k
   */
  weight(t, k) {
    return t === 0 ? 1 / this.K : this.weights[(t - 1) * this.K + k];
  }

  /**
   * Particles in the order of the rows.
   * @param {number} t @param {"slot"|"weight"|"lineage"} sort
   * @returns {Uint32Array}
   */
  order(t, sort) {
    const key = `${t} ${sort}`;
    if (this._order && this._order.key === key) return this._order.rows;
    const rows = Uint32Array.from({ length: this.K }, (_, k) => k);
    if (t > 0 && sort === "weight") {
      const weights = this.weights.subarray((t - 1) * this.K, t * this.K);
      rows.sort((a, b) => weights[b] - weights[a] || a - b);
    } else if (t > 0 && sort === "lineage") {
      const { slots } = this.genealogy(t);
      rows.sort((a, b) => {
        for (let at = 0; at < slots.length; at += this.K) {
          if (slots[at + a] !== slots[at + b]) return slots[at + a] - slots[at + b];
        }
        return a - b;
      });
    }
    this._order = { key, rows };
    return rows;
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
