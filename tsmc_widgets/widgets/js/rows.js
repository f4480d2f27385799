/**
 * @file The rows in sight as transparent text over the canvas, for screen readers, marking and copying. Made
 * when the view has come to rest.
 */

import { WAITS, h, percent } from "./dom.js";
import { HEADER_HEIGHT, HEAD_WIDTH, ROW_HEIGHT } from "./layout.js";
import { ENDED, ENDS } from "./record.js";
import { DEAD } from "./scales.js";

const PART = "bytes of a character that a later token may complete";

export class TextRows {
  constructor() {
    this.el = h("div", { class: "pv-rows", role: "presentation" });
    this.prefix = `pv${Math.random().toString(36).slice(2, 8)}`;
    /** @type {any[]} */
    this.pool = [];
  }

  reset() {
    this.pool = [];
    this.el.replaceChildren();
  }

  /** @param {any} view @param {TokenGrid} grid @returns {string} id of the first selected row */
  show(view, grid) {
    const { sight, order, record, t, related } = view;
    const count = sight.last - sight.first;
    while (this.pool.length < count) this.pool.push(this._row());
    while (this.pool.length > count) this.pool.pop().node.remove();
    let active = "";
    for (let i = 0; i < count; i++) {
      const row = sight.first + i;
      const slot = order.rows[row];
      const { node, head, slotText, weight } = this.pool[i];
      const share = percent(record.weight(t, slot));
      node.id = `${this.prefix}-row-${row}`;
      node.style.top = `${HEADER_HEIGHT + row * ROW_HEIGHT}px`;
      for (const [name, value] of Object.entries({
        "data-slot": slot,
        "aria-posinset": row + 1,
        "aria-setsize": record.K,
        "aria-selected": Boolean(related?.[slot]),
      })) node.setAttribute(name, String(value));
      head.style.width = `${HEAD_WIDTH}px`;
      slotText.data = `${slot} `;
      weight.data = share;
      if (related?.[slot] && !active) active = node.id;
      this._cells(this.pool[i], view, grid, row);
    }
    return active;
  }

  _row() {
    const slotText = document.createTextNode("");
    const weight = document.createTextNode("");
    const head = h("span", { class: "pv-head" }, h("span", {}, slotText), h("span", { class: "pv-weight" }, weight));
    const line = h("span", { class: "pv-line" });
    const node = h("div", { class: "pv-row", role: "option" }, head, line);
    this.el.append(node);
    return { node, head, slotText, weight, line, cells: [] };
  }

  /** @param {any} pooled @param {any} view @param {TokenGrid} grid @param {number} row */
  _cells({ line, cells }, view, grid, row) {
    const { record, sight, t } = view;
    const to = Math.max(sight.from, Math.min(t, sight.to));
    while (cells.length < to - sight.from) {
      const text = document.createTextNode("");
      const node = h("span", { class: "pv-cell" });
      node.append(text);
      line.append(node);
      cells.push({ node, text });
    }
    while (cells.length > to - sight.from) cells.pop().node.remove();
    for (let s = sight.from; s < to; s++) {
      const { node, text } = cells[s - sight.from];
      const slot = grid.slotAt(view, s, row);
      const at = s * record.K + slot;
      const gone = record.ending[at] === ENDED;
      const whole = record.words[record.tokens[at]];
      const word = gone ? "" : record.ending[at] === ENDS ? "∎" : grid.columns.fit(record, s, record.tokens[at]);
      // A blank between the words, for whoever copies a row.
      text.data = word === "" ? "" : `${word} `;
      node.style.left = `${HEAD_WIDTH + grid.columns.left(s)}px`;
      node.style.width = `${grid.columns.width(s)}px`;
      node.className = this._kind(view, at, gone);
      if (word === WAITS) node.title = PART;
      else if (word !== whole && !gone) node.title = whole;
      else if (node.title) node.removeAttribute("title");
    }
  }

  /** @param {any} view @param {number} at @param {boolean} gone */
  _kind({ indices, layout, genealogy }, at, gone) {
    let kind = "pv-cell";
    if (gone) return kind;
    if (indices[at] === DEAD) kind += " pv-dead";
    if (layout === "slots" && genealogy.heirs[at] === 0) kind += " pv-extinct";
    return kind;
  }
}
