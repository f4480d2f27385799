/** @file The grid of tokens: one row a particle, one cell a token, drawn on a canvas. */

import { SIZES, WAITS, clamp, css, fitCanvas, h, measure, percent } from "./dom.js";
import { Columns, HEADER_HEIGHT, HEAD_WIDTH, ROW_HEIGHT } from "./layout.js";
import { arrow, rect, word } from "./plot.js";
import { ENDED, ENDS } from "./record.js";
import { drawCopies, drawRibbons } from "./ribbons.js";
import { DEAD } from "./scales.js";

/** Where a row's bar begins, and how long a full one is. */
const BAR_LEFT = 40;
const BAR_WIDTH = 50;
const PART = "bytes of a character that a later token may complete";

export class TokenGrid {
  /**
   * @param {{pick: (s: number, row: number) => void, hover: (s: number, row: number) => void,
   *   redraw: () => void}} on what a pointer does
   * @param {AbortSignal} signal
   */
  constructor(on, signal) {
    this.on = on;
    this.canvas = h("canvas", { class: "pv-grid-canvas", "aria-hidden": "true" });
    this.rows = new TextRows();
    this.inner = h("div", { class: "pv-inner" }, this.canvas, this.rows.el);
    this.el = h(
      "div",
      { class: "pv-scroller", role: "listbox", tabindex: "0", "aria-label": "Texts of the particles" },
      this.inner,
    );
    this.columns = new Columns();
    this.shownStep = -1;
    /** The column at the left edge, -1 where one is cut; and where that is to be next. */
    this.leftmost = -1;
    /** @type {number | null} */
    this.kept = null;
    this.el.addEventListener("scroll", on.redraw, { signal, passive: true });
    this.el.addEventListener("click", (event) => this._point(event, on.pick), { signal });
    this.el.addEventListener("pointermove", (event) => this._point(event, on.hover), { signal });
    this.el.addEventListener("pointerleave", () => on.hover(-1, -1), { signal });
  }

  /** @param {MouseEvent} event @param {(s: number, row: number) => void} tell */
  _point(event, tell) {
    if (!this.view) return;
    const chosen = getSelection();
    if (event.type === "click" && chosen && !chosen.isCollapsed && this.el.contains(chosen.anchorNode)) {
      return; // Text was marked, nothing was clicked.
    }
    const box = this.el.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - this.el.clientLeft, event.clientY - box.top - this.el.clientTop];
    const row = Math.floor((y - HEADER_HEIGHT + this.el.scrollTop) / ROW_HEIGHT);
    if (y < HEADER_HEIGHT || row >= this.view.record.K || y > this._size().height) return tell(-1, -1);
    if (x < HEAD_WIDTH) return tell(this.view.t - 1, row);
    const s = this.columns.at(x - HEAD_WIDTH + this.el.scrollLeft);
    const shown = s >= 0 && s < this.view.t;
    // A click beside the tokens means the particle that stands in the row now.
    if (shown || event.type === "click") return tell(shown ? s : this.view.t - 1, row);
    return tell(-1, -1);
  }

  _size() {
    const { width, height } = SIZES.get(this.el) ?? measure(this.el);
    return { width: width || 600, height: height || 440 };
  }

  measure(view) {
    const { record, theme, layout } = view;
    const { columns } = this;
    this.measuredWidth = this._size().width;
    const leftmost = this.leftmost;
    columns.measure(record, theme, layout, this.measuredWidth - HEAD_WIDTH);
    // The column at the left edge stays there, whole, when the widths of those before it change.
    if (leftmost > 0) this.kept = columns.edges[Math.min(leftmost, record.T)];
    const content = HEADER_HEIGHT + record.K * ROW_HEIGHT;
    this.el.style.setProperty("--pv-content", `${content + 16}px`);
    this.inner.style.width = `${columns.furthest + this.measuredWidth}px`;
    this.inner.style.height = `${content}px`;
    this.shownStep = -1;
    this.rows.reset();
  }

  /** Scroll so that a slot's row is in sight. @param {any} view @param {number} row */
  reveal(view, row) {
    const at = row * ROW_HEIGHT;
    const room = this._size().height - HEADER_HEIGHT - 2;
    if (at < this.el.scrollTop) this.el.scrollTop = at;
    else if (at + ROW_HEIGHT > this.el.scrollTop + room) this.el.scrollTop = at + ROW_HEIGHT - room;
  }

  /** What is in sight, and where it is scrolled to. @param {any} view */
  look(view) {
    const { record, t } = view;
    if (this._size().width !== this.measuredWidth) this.measure(view);
    let left = this.el.scrollLeft;
    if (t !== this.shownStep) {
      left = this.columns.follow(t, this.kept ?? left);
      this.kept = null;
      this.shownStep = t;
      if (left !== this.el.scrollLeft) this.el.scrollLeft = left;
    }
    this.leftmost = this.columns.edges.indexOf(Math.round(left));
    const { width, height } = this._size();
    for (const [name, size] of [["width", `${width}px`], ["height", `${height}px`]]) {
      if (this.canvas.style[name] !== size) this.canvas.style[name] = size;
    }
    SIZES.set(this.canvas, { width, height });
    const top = this.el.scrollTop;
    const first = clamp(Math.floor(top / ROW_HEIGHT), 0, record.K - 1);
    const last = Math.min(record.K, Math.ceil((top + height - HEADER_HEIGHT) / ROW_HEIGHT));
    return { left, top, first, last, ...this.columns.between(left) };
  }

  /** The slot whose token stands in a cell. @param {any} view @param {number} s @param {number} row */
  slotAt({ record, layout, order, genealogy: { slots } }, s, row) {
    return layout === "slots" ? order.column(s)[row] : slots[s * record.K + order.rows[row]];
  }

  /** @param {any} view the state of the view, see particle_view.js */
  draw(view) {
    this.view = view;
    const { sight, theme } = view;
    const { context, width, height } = fitCanvas(this.canvas);
    if (width < 2) return;
    this.y = (/** @type {number} */ row) => HEADER_HEIGHT + row * ROW_HEIGHT - sight.top;
    this.x = (/** @type {number} */ s) => HEAD_WIDTH + this.columns.left(s) - sight.left;
    context.textBaseline = "middle";
    rect(context, 0, 0, width, height, css(theme.background));
    this._now(context, view, height);
    this._ribbons(context, view, height);
    this._cells(context, view);
    this._heads(context, view, height);
    this._header(context, view, width);
  }

  /** A band behind the shown step. @param {CanvasRenderingContext2D} context @param {any} view @param {number} height */
  _now(context, { t, theme }, height) {
    if (t === 0) return;
    rect(context, this.x(t - 1) - 2, 0, this.columns.width(t - 1) + 4, height, css(theme.text, 0.07));
  }

  /** @param {CanvasRenderingContext2D} context @param {any} view @param {number} height */
  _ribbons(context, view, height) {
    const { record, t, sight, layout, theme } = view;
    for (let s = Math.max(1, sight.from); s < Math.min(t, sight.to + 1); s++) {
      if (!record.resampled[s]) continue;
      const left = this.x(s) - this.columns.gaps[s];
      if (layout === "slots") {
        const box = { left, right: this.x(s), top: 0, bottom: height, y: this.y };
        drawRibbons(context, view, s, box);
        drawCopies(context, view, s, { left, from: sight.first, to: sight.last, y: this.y });
      } else {
        for (let y = HEADER_HEIGHT; y < height; y += 5) rect(context, left + 0.5, y, 1.5, 2.5, css(theme.orange, 0.8));
      }
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {any} view */
  _cells(context, view) {
    const { record, t, sight, indices, palette, marks, theme, hover, focus } = view;
    const { heirs } = view.genealogy;
    const { K } = record;
    const { columns } = this;
    const inSlots = view.layout === "slots";
    const chosen = new Path2D();
    /** @type {[string, number, number][][]} */
    const texts = [[], [], []];
    context.font = `12px ${theme.font}`;
    context.textAlign = "left";
    for (let s = sight.from; s < Math.min(t, sight.to); s++) {
      const [x, width] = [this.x(s), columns.width(s)];
      for (let row = sight.first; row < sight.last; row++) {
        const slot = this.slotAt(view, s, row);
        const at = s * K + slot;
        const y = this.y(row);
        const ended = record.ending[at];
        const pale = marks ? !marks[at] : inSlots ? heirs[at] === 0 : this._repeats(view, s, row, slot);
        if (ended === ENDED) {
          texts[2].push(["·", x + width / 2 - 2, y]);
          continue;
        }
        rect(context, x, y + 1, width, ROW_HEIGHT - 2, (pale ? palette.faint : palette.cell)[indices[at]]);
        const word = ended === ENDS ? "∎" : columns.fit(record, s, record.tokens[at]);
        texts[word === WAITS ? 2 : pale ? 1 : 0].push([word, x + 3, y]);
        if (indices[at] === DEAD) {
          rect(context, x + 2, y + ROW_HEIGHT / 2, width - 4, 1, css(theme.muted));
        }
        if (marks?.[at]) chosen.rect(x + 0.5, y + 1.5, width - 1, ROW_HEIGHT - 3);
      }
    }
    const shades = [css(theme.text), css(theme.text, marks ? 0.55 : 0.5), css(theme.muted, 0.6)];
    texts.forEach((words, shade) => {
      context.fillStyle = shades[shade];
      for (const [word, x, y] of words) context.fillText(word, x, y + ROW_HEIGHT / 2 + 0.5);
    });
    context.lineWidth = 1;
    context.strokeStyle = css(theme.lineage);
    if (marks) context.stroke(chosen);
    for (const [cell, size] of [[hover, 1], [focus, 2]]) this._outline(context, view, cell, size);
  }

  /** In families each text shows what it shares with the one above only palely. @param {any} view @param {number} s @param {number} row @param {number} slot */
  _repeats(view, s, row, slot) {
    return view.sort === "lineage" && row > view.sight.first && this.slotAt(view, s, row - 1) === slot;
  }

  /** @param {CanvasRenderingContext2D} context @param {any} view @param {{s: number, slot: number, row?: number} | null} cell @param {number} size */
  _outline(context, view, cell, size) {
    const { sight, t } = view;
    if (!cell || cell.s < sight.from || cell.s >= Math.min(t, sight.to)) return;
    context.lineWidth = size;
    context.strokeStyle = css(view.theme.text);
    for (let row = sight.first; row < sight.last; row++) {
      if (cell.row === undefined ? this.slotAt(view, cell.s, row) !== cell.slot : row !== cell.row) continue;
      const y = this.y(row) + 1;
      context.strokeRect(this.x(cell.s) - 0.5, y - 0.5, this.columns.width(cell.s) + 1, ROW_HEIGHT - 1);
    }
  }

  /** Slot and weight of each row. @param {CanvasRenderingContext2D} context @param {any} view @param {number} height */
  _heads(context, view, height) {
    const { record, t, sight, order, theme, related } = view;
    const { K } = record;
    const full = Math.min(1, 4 / K);
    rect(context, 0, 0, HEAD_WIDTH, height, css(theme.background));
    const average = BAR_LEFT + (BAR_WIDTH / K / full);
    for (let row = sight.first; row < sight.last; row++) {
      const slot = order.rows[row];
      const [y, weight] = [this.y(row), record.weight(t, slot)];
      if (related?.[slot]) {
        rect(context, 0, y, HEAD_WIDTH - 1, ROW_HEIGHT, css(theme.lineage, 0.22));
      }
      rect(context, BAR_LEFT, y + 6, BAR_WIDTH, 10, css(theme.text, 0.06));
      rect(context, BAR_LEFT, y + 6, BAR_WIDTH * Math.min(1, weight / full), 10, css(theme.blue));
      word(context, percent(weight), HEAD_WIDTH - 8, y + ROW_HEIGHT / 2 + 0.5, css(weight === 0 ? theme.muted : theme.text), "right");
      word(context, String(slot), BAR_LEFT - 8, y + ROW_HEIGHT / 2 + 0.5, css(theme.muted), "right");
    }
    const tall = (sight.last - sight.first) * ROW_HEIGHT;
    if (K > 1) rect(context, Math.round(average), HEADER_HEIGHT, 1, tall, css(theme.text, 0.4));
    rect(context, HEAD_WIDTH - 1, 0, 1, height, css(theme.grid));
  }

  /** Numbers of the steps, and where particles were resampled. @param {CanvasRenderingContext2D} context @param {any} view @param {number} width */
  _header(context, view, width) {
    const { record, t, sight, theme, layout } = view;
    rect(context, 0, 0, width, HEADER_HEIGHT - 1, css(theme.background));
    rect(context, 0, HEADER_HEIGHT - 1, width, 1, css(theme.grid));
    const middle = HEADER_HEIGHT / 2;
    context.textAlign = "left";
    for (let s = sight.from; s < Math.min(record.T, sight.to); s++) {
      const [x, cell] = [this.x(s), this.columns.width(s)];
      const now = s === t - 1;
      context.font = `${now ? "700 " : ""}11px ${theme.font}`;
      context.fillStyle = css(now ? theme.text : theme.muted, s < t ? 1 : 0.6);
      context.fillText(String(s + 1), x + 3, middle);
      if (now) context.fillRect(x, HEADER_HEIGHT - 3, cell, 3);
      if (s === 0 || s >= t || !record.resampled[s]) continue;
      const at = layout === "slots" ? x - this.columns.gaps[s] / 2 : x - 2;
      const half = layout === "slots" ? 5 : 3;
      arrow(context, at, middle - half, middle + half, half, css(theme.orange));
    }
    rect(context, 0, 0, HEAD_WIDTH - 1, HEADER_HEIGHT - 1, css(theme.background));
    context.font = `11px ${theme.font}`;
    word(context, "slot", BAR_LEFT - 8, middle, css(theme.muted), "right");
    word(context, t > 0 ? `weight at step ${t}` : "weight", BAR_LEFT, middle, css(theme.muted), "left");
  }
}

/**
 * The rows in sight as transparent text over the canvas, for screen readers, marking and copying. Made
 * when the view has come to rest.
 */
class TextRows {
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
