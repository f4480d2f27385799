/** @file Resampling as ribbons: from each particle to its copies, wide where there are many. */

import { css } from "./dom.js";
import { copies, siblingGroups } from "./genealogy.js";
import { ROW_HEIGHT } from "./layout.js";

export const FAINT = 0;
export const LIVING = 1;
export const CHOSEN = 2;

/** Sibling groups of a column, kept while the order of the rows does not depend on the step. */
function siblingGroupsOf(/** @type {any} */ view, /** @type {number} */ s) {
  const { record, order, sort } = view;
  if (sort === "weight" || sort === "loss") return siblingGroups(record, s, order);
  const key = `${record.id} ${sort}`;
  if (view.siblingGroups?.key !== key) view.siblingGroups = { key, columns: [] };
  return (view.siblingGroups.columns[s] ??= siblingGroups(record, s, order));
}

/**
 * Each strand from a parent to one child: strands of one sibling group share the parent's height.
 * @param {any} view @param {number} s
 * @param {(parentRank: number, share: number, part: number, rank: number, kind: number) => void} draw
 */
export function eachStrand(view, s, draw) {
  const { record, order, marks } = view;
  const { K } = record;
  const { heirs } = view.genealogy;
  const slots = order.column(s);
  const found = siblingGroupsOf(view, s);
  for (let i = 0; i < found.length; i += 4) {
    const [rank, first, last] = [found[i], found[i + 1], found[i + 2]];
    const part = 1 / (last - first + 1);
    for (let row = first; row <= last; row++) {
      const at = s * K + slots[row];
      const kind = marks?.[at] ? CHOSEN : heirs[at] > 0 ? LIVING : FAINT;
      draw(rank, (row - first) * part, part, row, kind);
    }
  }
}

/**
 * Ribbons of the grid, into column s.
 * @param {CanvasRenderingContext2D} context @param {any} view @param {number} s
 * @param {{left: number, right: number, top: number, bottom: number, y: (row: number) => number}} box
 */
export function drawRibbons(context, view, s, { left, right, top, bottom, y }) {
  const { theme } = view;
  const paths = [new Path2D(), new Path2D(), new Path2D()];
  const middle = (left + right) / 2;
  eachStrand(view, s, (parent, share, part, row, kind) => {
    const [y0, y1] = [y(row) + 1, y(row + 1) - 1];
    const p0 = y(parent) + 1 + share * (ROW_HEIGHT - 2);
    const p1 = p0 + part * (ROW_HEIGHT - 2);
    if (Math.max(p1, y1) < top || Math.min(p0, y0) > bottom) return;
    const path = paths[kind];
    path.moveTo(left, p0);
    path.bezierCurveTo(middle, p0, middle, y0, right, y0);
    path.lineTo(right, y1);
    path.bezierCurveTo(middle, y1, middle, p1, left, p1);
    path.closePath();
  });
  const [faint, living] = theme.dark ? [0.12, 0.36] : [0.05, 0.2];
  const styles = [css(theme.text, faint), css(theme.text, view.marks ? living / 2 : living), css(theme.lineage, 0.45)];
  paths.forEach((path, kind) => {
    context.fillStyle = styles[kind];
    context.fill(path);
  });
}

/**
 * The number of copies at each parent of column s, and an end mark where there are none.
 * @param {CanvasRenderingContext2D} context @param {any} view @param {number} s
 * @param {{left: number, from: number, to: number, y: (row: number) => number}} box
 */
export function drawCopies(context, view, s, { left, from, to, y }) {
  const { record, order, theme } = view;
  const counts = copies(record, s);
  const slots = order.column(s - 1);
  context.strokeStyle = css(theme.muted, 0.7);
  context.lineWidth = 1.25;
  context.fillStyle = css(theme.text);
  context.font = `600 10.5px ${theme.font}`;
  context.textAlign = "left";
  context.beginPath();
  for (let row = from; row < to; row++) {
    const count = counts[slots[row]];
    const at = y(row) + ROW_HEIGHT / 2;
    if (count > 1) context.fillText(`×${count}`, left + 4, at + 0.5);
    else if (count === 0) {
      context.moveTo(left + 3, at - 2.5);
      context.lineTo(left + 8, at + 2.5);
      context.moveTo(left + 8, at - 2.5);
      context.lineTo(left + 3, at + 2.5);
    }
  }
  context.stroke();
}
