/** @file Twisted SMC as in Python, with the same noise, and its record as the particle view reads it. */

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
const USES = { token: 0, resample: 1 };
const FLOOR = -6;

/** Both halves of a product of 32-bit numbers. */
function multiply(a, b) {
  const [aHigh, aLow, bHigh, bLow] = [a >>> 16, a & 0xffff, b >>> 16, b & 0xffff];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const cross = aLow * bHigh + (middle & 0xffff);
  return [(aHigh * bHigh + Math.floor(middle / 65536) + Math.floor(cross / 65536)) >>> 0, Math.imul(a, b) >>> 0];
}

/** Philox 4x32-10 of one counter. */
function philox(counter, seed) {
  let [a, b, c, d] = counter;
  let [k0, k1] = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(a, MULTIPLIERS[0]);
    const [high1, low1] = multiply(c, MULTIPLIERS[1]);
    [a, b, c, d] = [(high1 ^ b ^ k0) >>> 0, low1, (high0 ^ d ^ k1) >>> 0, low0];
    [k0, k1] = [(k0 + WEYL[0]) >>> 0, (k1 + WEYL[1]) >>> 0];
  }
  return [a, b, c, d];
}

/** Uniforms of a step, as `AddressedNoise` gives run 0. */
export function uniforms(seed, step, use, count) {
  const out = [];
  for (let pair = 0; out.length < count; pair++) {
    const words = philox([pair, 2 * step + USES[use], 0, 0], seed);
    for (const i of [0, 2]) out.push(((words[i] >>> 5) * 2 ** 26 + (words[i + 1] >>> 6)) * 2 ** -53);
  }
  return out.slice(0, count);
}

function logSumExp(values) {
  const top = Math.max(...values);
  return top === -Infinity ? top : top + Math.log(values.reduce((sum, v) => sum + Math.exp(v - top), 0));
}

function normalise(logWeights) {
  const total = logSumExp(logWeights);
  return logWeights.map((value) => (total === -Infinity ? 0 : Math.exp(value - total)));
}

function ess(logWeights) {
  const squares = normalise(logWeights).reduce((sum, w) => sum + w * w, 0);
  return squares > 0 ? Math.min(1 / squares, logWeights.length) : 0;
}

/** Places of points in a cumulative mass. @param {ArrayLike<number>} mass @param {number[]} points */
function search(mass, points) {
  const cumulative = new Float64Array(mass.length);
  let total = 0;
  for (let i = 0; i < mass.length; i++) cumulative[i] = total += mass[i];
  return points.map((point) => {
    const goal = Math.min(point * total, total * (1 - 2 ** -53));
    const found = cumulative.findIndex((value) => value > goal);
    return found < 0 ? mass.length - 1 : found;
  });
}

/** phi: words that must and must not occur, and the probability of a number of stars to a power. */
export class Potential {
  /** @param {{contains: string[], avoids: string[], stars: number, beta: number}} asked */
  constructor(asked) {
    Object.assign(this, asked);
    const pattern = (phrase) =>
      new RegExp(`(?<!\\w)${phrase.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+")}(?!\\w)`, "i");
    this.wanted = this.contains.map(pattern);
    this.unwanted = this.avoids.map(pattern);
  }

  /** How many words are missing or forbidden. @param {string} text */
  faults(text) {
    return this.wanted.filter((p) => !p.test(text)).length + this.unwanted.filter((p) => p.test(text)).length;
  }

  logPhi(text, classes) {
    return this.faults(text) ? -Infinity : this.stars ? this.beta * classes[this.stars - 1] : 0;
  }

  /** The twist: phi of the text so far, to the power t / 2T, with a finite price for each fault. */
  logPsi(text, classes, share) {
    const stars = this.stars ? this.beta * classes[this.stars - 1] : 0;
    return share * (Math.max(stars, 2 * FLOOR) + FLOOR * this.faults(text));
  }
}

/**
 * One run, step by step. Yields the record of each: columns of K numbers, and what is one number.
 * @param {{lm: any, judge: any, words: any}} models
 * @param {{prompt: string, steps: number, particles: number, seed: number, potential: Potential}} asked
 */
export function* run({ lm, judge, words }, { prompt, steps, particles, seed, potential }) {
  const ids = words.encode(prompt);
  if (!ids.length) throw new Error("Give the prompt a word or more.");
  const read = (model) => ids.reduce((node, id) => model.read(node, id), null);
  const start = { lm: read(lm), judge: potential.stars ? read(judge) : null, ids: [], done: false };
  let population = Array.from({ length: particles }, () => start);
  let logWeights = population.map(() => 0);
  let logPsi = population.map(() => 0);
  let logZ = 0;
  for (let t = 1; t <= steps; t++) {
    const resampled = t > 1 && ess(logWeights) < 0.5 * particles;
    let ancestors = population.map((_, k) => k);
    if (resampled) {
      const [u] = uniforms(seed, t, "resample", 1);
      ancestors = search(normalise(logWeights), population.map((_, k) => (k + u) / particles));
      logWeights = logWeights.map(() => 0);
    }
    const noise = uniforms(seed, t, "token", particles);
    const before = logSumExp(logWeights);
    const row = { t, resampled, ancestors, tokens: [], logP: [], logPsi: [], logIncrement: [] };
    const grown = ancestors.map((parent, k) => {
      const old = population[parent];
      const next = old.done ? { token: 0, logP: 0, child: old, logPsi: logPsi[parent] } : grow(old, noise[k]);
      row.tokens.push(next.token);
      row.logP.push(next.logP);
      row.logPsi.push(next.logPsi);
      row.logIncrement.push(logPsi[parent] === -Infinity ? -Infinity : next.logPsi - logPsi[parent]);
      return next.child;
    });
    /** A particle with one more token. */
    function grow(old, u) {
      const logProbs = lm.next(old.lm);
      old.mass ??= logProbs.map(Math.exp);
      const [token] = search(old.mass, [u]);
      old.children ??= new Map();
      let found = old.children.get(token);
      if (!found) {
        const done = token === 0;
        const child = { ids: [...old.ids, token], done, lm: null, judge: old.judge };
        if (!done) {
          child.lm = t < steps ? lm.read(old.lm, token) : null;
          child.judge = old.judge && judge.read(old.judge, token);
        }
        // Where a text ends, and at T, phi stands in place of psi; before, psi reads what was there.
        const last = done || t === steps;
        const [seen, by] = last ? [child, child] : [old, old];
        const classes = by.judge && judge.classes(by.judge);
        const text = words.decode(seen.ids);
        const value = last ? potential.logPhi(text, classes) : potential.logPsi(text, classes, t / (2 * steps));
        found = { token, logP: logProbs[token], child, logPsi: value };
        old.children.set(token, found);
      }
      return found;
    }
    population = grown;
    logPsi = row.logPsi;
    logWeights = row.logIncrement.map((added, k) => logWeights[k] + added);
    const total = logSumExp(logWeights);
    logZ = total === -Infinity ? total : logZ + total - before;
    yield { ...row, logWeights, logZ, ess: ess(logWeights), weights: normalise(logWeights), texts: population.map((p) => p.ids) };
    if (total === -Infinity) throw new Error(`All ${particles} weights are zero at step ${t}: ask for less, or take more particles.`);
  }
}

/** A page of bytes as the particle view reads it. @param {Record<string, any>} facts @param {Record<string, any>} columns */
export function pack(facts, columns) {
  let offset = 0;
  const entries = Object.entries(columns).map(([name, values]) => {
    const entry = { name, dtype: DTYPES.get(values.constructor), offset, length: values.length };
    offset += Math.ceil(values.byteLength / 8) * 8;
    return entry;
  });
  let text = new TextEncoder().encode(JSON.stringify({ ...facts, columns: entries }));
  const start = 4 + text.length + ((8 - ((text.length + 4) % 8)) % 8);
  const page = new Uint8Array(start + offset).fill(32, 4, start);
  new DataView(page.buffer).setUint32(0, start - 4, true);
  page.set(text, 4);
  Object.values(columns).forEach((values, i) => page.set(new Uint8Array(values.buffer), start + entries[i].offset));
  return new DataView(page.buffer);
}
const DTYPES = new Map([
  [Uint8Array, "uint8"], [Uint16Array, "uint16"], [Float32Array, "float32"], [Float64Array, "float64"],
]);
