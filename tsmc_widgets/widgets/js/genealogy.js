/** @file Who descends from whom, and in which order the rows stand. */

import { number, plural } from "./dom.js";

/**
 * @typedef {object} Genealogy of the particles at step t
 * @property {number} t
 * @property {Uint32Array} slots for column s and particle k the slot of k's ancestor there
 * @property {Uint32Array} heirs for column s and slot k how many particles descend from it
 * @property {Uint32Array} survivors for column s how many of its slots have a descendant
 */

/** @param {RunRecord} record @param {number} t @returns {Genealogy} */
export function genealogy(record, t) {
  if (record._genealogy && record._genealogy.t === t) return record._genealogy;
  const { K, ancestors } = record;
  const slots = new Uint32Array(t * K);
  const heirs = new Uint32Array(t * K);
  const survivors = new Uint32Array(t);
  for (let s = t - 1; s >= 0; s--) {
    const row = s * K;
    for (let k = 0; k < K; k++) {
      const slot = s === t - 1 ? k : ancestors[row + K + slots[row + K + k]];
      slots[row + k] = slot;
      if (heirs[row + slot]++ === 0) survivors[s] += 1;
    }
  }
  record._genealogy = { t, slots, heirs, survivors };
  return record._genealogy;
}

/** Slots of one particle's ancestors at steps 1..t. @param {RunRecord} record @param {number} t @param {number} slot */
export function lineage(record, t, slot) {
  const path = new Uint32Array(t);
  for (let s = t - 1; s >= 0; s--) {
    path[s] = slot;
    slot = record.ancestors[s * record.K + slot];
  }
  return path;
}

/**
 * Marks of a particle's whole lineage: its ancestors, itself, and all descendants up to step t.
 * @param {RunRecord} record @param {{step: number, slot: number}} selection @param {number} t
 */
export function family(record, { step, slot }, t) {
  const { K, ancestors } = record;
  const marks = new Uint8Array(t * K);
  lineage(record, step, slot).forEach((k, s) => s < t && (marks[s * K + k] = 1));
  for (let s = step; s < t; s++) {
    for (let k = 0; k < K; k++) marks[s * K + k] = marks[(s - 1) * K + ancestors[s * K + k]];
  }
  return marks;
}

/**
 * The rows at step t: which slot stands in each row of a column. With "lineage" every column has
 * an order of its own, in which families stay together; else all columns share one.
 * @param {RunRecord} record @param {number} t @param {string} sort "slot", "weight", "loss" or "lineage"
 */
export function arrange(record, t, sort) {
  const key = `${t} ${sort}`;
  if (record._order && record._order.key === key) return record._order;
  const { K, families, places } = record;
  const own = sort === "lineage" && t > 0;
  const rows = Uint32Array.from({ length: K }, (_, k) => k);
  const [column, first] = { weight: [record.weights, 1], loss: [record.logIncrement, -1] }[sort] ?? [];
  if (column && t > 0) {
    const values = column.subarray((t - 1) * K, t * K);
    rows.sort((a, b) => (values[a] === values[b] ? a - b : values[a] > values[b] ? -first : first));
  }
  const ranks = new Uint32Array(K);
  rows.forEach((k, i) => (ranks[k] = i));
  record._order = {
    key,
    /** Slots of a column in the order of the rows. @param {number} s */
    column: (s) => (own ? families.subarray(s * K, (s + 1) * K) : rows),
    /** Rows of a column's slots. @param {number} s */
    ranks: (s) => (own ? places.subarray(s * K, (s + 1) * K) : ranks),
    /** Slots at the shown step in the order of the rows. */
    rows: own ? families.subarray((t - 1) * K, t * K) : rows,
  };
  return record._order;
}

/**
 * Runs of neighbouring rows of column s with one parent: [parent's row, first row, last row, parent]
 * four by four. These are the ribbons from column s - 1 to column s.
 * @param {RunRecord} record @param {number} s @param {ReturnType<typeof arrange>} order
 */
export function siblingGroups(record, s, order) {
  const { K, ancestors } = record;
  const slots = order.column(s);
  const parentRanks = order.ranks(s - 1);
  const found = [];
  for (let first = 0, i = 1; i <= K; i++) {
    const parent = ancestors[s * K + slots[first]];
    if (i < K && ancestors[s * K + slots[i]] === parent) continue;
    found.push(parentRanks[parent], first, i - 1, parent);
    first = i;
  }
  return found;
}

/** The selected particle, its ancestors and descendants in a sentence. @param {any} view */
export function lineageInWords({ record, t, selection, related }) {
  if (!selection || t === 0) return "Click a particle to follow its ancestors and descendants.";
  const who = `Particle ${selection.slot} of step ${selection.step}`;
  if (t > selection.step) {
    const living = related.reduce((/** @type {number} */ sum, /** @type {number} */ one) => sum + one, 0);
    return `${who}: ${living} of the ${record.K} particles at step ${t} descend from it.`;
  }
  const moves = selection.path.filter(
    (/** @type {number} */ slot, /** @type {number} */ s) => s > 0 && slot !== selection.path[s - 1],
  );
  const { slots } = genealogy(record, t);
  const shared = slots.subarray(0, record.K).filter((slot) => slot === selection.path[0]).length;
  const moved = moves.length ? `moved slot ${plural(moves.length, "time")}` : "never moved slot";
  return `${who}: ${moved}; ${shared} of ${record.K} particles at step ${t} share its first token.`;
}

/** What a step did, in words. @param {RunRecord} record @param {number} t */
export function stepInWords(record, t) {
  const { K, T } = record;
  if (t === 0) return `Before step 1: ${plural(K, "particle")} that all read the prompt, each with weight 1/${K}.`;
  const s = t - 1;
  const end = t === T ? " At the last step log φ itself enters the weights." : "";
  const ess = record.ess[s] > 0 ? "" : " All weights are 0: no text that is left is allowed.";
  if (s === 0 || !record.resampled[s]) {
    return `Step ${t}: every particle drew a token, and its weight took the increment.${end}${ess}`;
  }
  const counts = copies(record, s);
  const ended = counts.filter((count) => count === 0).length;
  const copied = counts.filter((count) => count > 1).length;
  const most = counts.reduce((a, b) => Math.max(a, b), 0);
  const before = number(record.ess[s - 1], K < 1000 ? 1 : 0);
  const copying = copied === 0 ? "none was copied" : copied === 1
    ? `one was copied ${most} times` : `${copied} were copied, one of them ${most} times`;
  return (
    `Step ${t} began by resampling, at an ESS of ${before}: ${ended} of ${K} particles ended, ` +
    `${copying}, and all weights became equal. Then every particle drew a token.${end}${ess}`
  );
}

/**
 * How many copies each slot of column s - 1 has in column s.
 * @param {RunRecord} record @param {number} s
 */
export function copies(record, s) {
  const counts = new Uint32Array(record.K);
  const row = s * record.K;
  for (let k = 0; k < record.K; k++) counts[record.ancestors[row + k]] += 1;
  return counts;
}
