/** @file A run as its panels need it: populations without tokens, and log Z hat of every run. */

class PanelRecord extends RunColumns {
  /** @param {any} header */
  constructor(header) {
    super(header);
    const { T } = this;
    this.R = header.runs.length;
    /** Log Z hat, step-major: `s * R + r`. */
    this.everyLogZ = new Float64Array(T * this.R);
    this.pooled = new Float64Array(T);
    this.pooledLow = new Float64Array(T);
    this.pooledHigh = new Float64Array(T);
  }

  /** @param {any} header */
  use(header) {
    super.use(header);
    this.bracket = header.bracket ? header.bracket.map(Number) : null;
  }

  get narrow() {
    const { pooled, pooledLow, pooledHigh } = this;
    return { ...super.narrow, pooled, pooled_low: pooledLow, pooled_high: pooledHigh };
  }

  /** @param {{facts: any, columns: any}} page */
  absorb(page) {
    super.absorb(page);
    this.everyLogZ.set(page.columns.every_log_z, page.facts.first * this.R);
  }

  forget() {
    super.forget();
    /** @type {[number, number] | null} */
    this._range = null;
  }

  /** Log Z hat of a run after step t. @param {number} t @param {number} r */
  logZOf(t, r) {
    return t === 0 ? 0 : this.everyLogZ[(t - 1) * this.R + r];
  }

  /** Log Z hat of all runs after step t. @param {number} t */
  allAt(t) {
    return t === 0 ? new Float64Array(this.R) : this.everyLogZ.subarray((t - 1) * this.R, t * this.R);
  }

  /** Least and largest finite log Z hat of all runs and steps. */
  get range() {
    if (this._range) return this._range;
    let [low, high] = [0, 0];
    for (let i = 0; i < this.steps * this.R; i++) {
      const value = this.everyLogZ[i];
      if (!Number.isFinite(value)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    return (this._range = /** @type {[number, number]} */ ([low, high]));
  }

  /** How many slots of each step 1..t have a descendant at step t. @param {number} t */
  survivors(t) {
    const { K, ancestors } = this;
    const counts = new Uint32Array(t);
    const slots = Uint32Array.from({ length: K }, (_, k) => k);
    const seen = new Int32Array(K).fill(-1);
    for (let s = t - 1; s >= 0; s--) {
      for (let k = 0; k < K; k++) {
        const slot = slots[k];
        if (seen[slot] !== s) counts[s] += 1;
        seen[slot] = s;
        slots[k] = ancestors[s * K + slot];
      }
    }
    return counts;
  }

  /**
   * Share of the weight that the heaviest particles hold at step t, for 0, 1, .. K of them; null
   * where all weights are 0.
   * @param {number} t
   */
  lorenz(t) {
    const weights = this.sortedWeights(t);
    if (!(weights[0] > 0)) return null;
    const shares = new Float64Array(this.K + 1);
    for (let k = 0; k < this.K; k++) shares[k + 1] = shares[k] + weights[k];
    const total = shares[this.K];
    return shares.map((share) => share / total);
  }
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

/**
 * The final samples that come with a header; null before there are any.
 * @param {any} header @param {DataView | undefined} data
 */
function readSamples(header, data) {
  if (!data || !data.byteLength) return null;
  const { facts, columns } = readPage(data);
  if (facts.id !== header.id) return null;
  return facts.texts.map((/** @type {string} */ text, /** @type {number} */ i) => ({
    text,
    weight: columns.weight[i],
    particles: columns.copies[i],
    log_phi: columns.log_phi[i],
    log_p0: columns.log_p0[i],
    ended_at: columns.ended[i] || null,
    slot: columns.slot[i],
  }));
}
