/**
 * @file Texts of the particles: one row a particle, one token a cell, only visible rows in the DOM.
 */

const ROW_HEIGHT = 22;
const HEADER_HEIGHT = 24;
const HEAD_WIDTH = 148;
const CELL_MIN = 26;
const CELL_MAX = 104;
const CELL_PADDING = 11;
/** Share of a column's tokens that fit where not all can; the others end in an ellipsis. */
const FITTING = 0.985;

class TextGrid {
  /**
   * @param {(slot: number) => void} onSelect
   * @param {() => void} redraw
   * @param {AbortSignal} signal
   */
  constructor(onSelect, redraw, signal) {
    this.header = h("div", { class: "pv-columns", "aria-hidden": "true" });
    this.marks = h("div", { class: "pv-marks", "aria-hidden": "true" });
    this.rows = h("div", { class: "pv-rows" });
    this.inner = h("div", { class: "pv-inner" }, this.header, this.marks, this.rows);
    this.el = h(
      "div",
      { class: "pv-scroller", role: "listbox", tabindex: "0", "aria-label": "Texts of the particles" },
      this.inner,
    );
    this.prefix = `pv${Math.random().toString(36).slice(2, 8)}`;
    /** @type {any[]} */
    this.pool = [];
    /** @type {any[]} */
    this.columns = [];
    this.offsets = [0];
    this.shownStep = -1;
    /** @type {number | null} */
    this.kept = null;
    this.onSelect = onSelect;
    this.el.addEventListener("scroll", redraw, { signal, passive: true });
    this.el.addEventListener("click", (event) => this._click(event), { signal });
  }

  /** @param {MouseEvent} event */
  _click(event) {
    const row = /** @type {Element} */ (event.target).closest(".pv-row");
    if (row) this.onSelect(Number(row.getAttribute("data-slot")));
  }

  /**
   * Widths of the columns, from their tokens; each word is measured once.
   * @param {RunRecord} record @param {Theme} theme
   */
  measure(record, theme) {
    const context = /** @type {CanvasRenderingContext2D} */ (probe);
    context.font = `12px ${theme.font}`;
    if (this.measuredFont !== theme.font || this.measuredId !== record.id) this.widths = [];
    [this.measuredFont, this.measuredId] = [theme.font, record.id];
    for (let i = this.widths.length; i < record.words.length; i++) {
      this.widths.push(context.measureText(record.words[i]).width);
    }
    this.measuredWidth = this._size().width;
    const room = this.measuredWidth - HEAD_WIDTH;
    const leftmost = this.offsets.indexOf(Math.round(this.kept ?? this.el.scrollLeft));
    this.offsets = this._columnEdges(record, 1);
    if (this.offsets[record.T] > room) this.offsets = this._columnEdges(record, FITTING);
    // The column at the left edge stays there, whole, when the widths of those before it change.
    if (leftmost > 0) this.kept = this.offsets[Math.min(leftmost, record.T)];
    const content = HEADER_HEIGHT + record.K * ROW_HEIGHT;
    this.el.style.setProperty("--pv-content", `${content + 16}px`);
    this._layColumns(record);
  }

  /** @param {RunRecord} record @param {number} share of the tokens of a column that must fit */
  _columnEdges(record, share) {
    const edges = [0];
    const planned = quantile(this.widths, 0.5);
    for (let s = 0; s < record.T; s++) {
      const tokens = record.tokens.subarray(s * record.K, (s + 1) * record.K);
      const written = tokens.filter((/** @type {number} */ i) => i !== record.header.eos);
      const widths = Array.from(written, (/** @type {number} */ i) => this.widths[i]);
      const wide = s < record.steps ? quantile(widths, share) : planned;
      edges.push(edges[s] + Math.ceil(clamp(wide + CELL_PADDING, CELL_MIN, CELL_MAX)));
    }
    return edges;
  }

  /** @param {RunRecord} record */
  _layColumns(record) {
    this.inner.style.width = `${this._end(record.T) + this.measuredWidth}px`;
    this.inner.style.height = `${HEADER_HEIGHT + record.K * ROW_HEIGHT}px`;
    this.columns = Array.from({ length: record.T }, (_, s) => {
      const name = h("span", { class: "pv-column" }, String(s + 1));
      name.style.left = `${HEAD_WIDTH + this.offsets[s]}px`;
      name.style.width = `${this.offsets[s + 1] - this.offsets[s]}px`;
      const mark = h("span", { class: "pv-mark" });
      mark.style.left = `${HEAD_WIDTH + this.offsets[s] - 2}px`;
      return { name, mark, state: "", on: false };
    });
    const head = h("span", { class: "pv-head pv-head-title" }, h("span", { class: "pv-slot" }, "slot"), "weight");
    head.title = "Bar: share of the weight, full at 4 times the average 1/K, which the tick marks";
    this.header.replaceChildren(head, ...this.columns.map(({ name }) => name));
    this.marks.replaceChildren(...this.columns.map(({ mark }) => mark));
    for (const row of this.pool) {
      row.cells.forEach((cell, s) => this._placeCell(cell.node, s));
      row.cells.length = Math.min(row.cells.length, record.T);
      while (row.line.childElementCount > row.cells.length) row.line.lastElementChild.remove();
    }
    this.shownStep = -1;
  }

  /** @param {HTMLElement} node @param {number} s */
  _placeCell(node, s) {
    if (s + 1 >= this.offsets.length) return;
    node.style.left = `${this.offsets[s]}px`;
    node.style.width = `${this.offsets[s + 1] - this.offsets[s] - 2}px`;
  }

  /** @param {number} count rows that the pool needs */
  _fill(count) {
    while (this.pool.length < count) {
      const slot = h("span", { class: "pv-slot" });
      const fill = h("span", { class: "pv-bar-fill" });
      const bar = h("span", { class: "pv-bar" }, fill);
      const weight = h("span", { class: "pv-weight" });
      const line = h("span", { class: "pv-line" });
      const head = h("span", { class: "pv-head" }, slot, bar, weight);
      const node = h("div", { class: "pv-row", role: "option" }, head, line);
      this.pool.push({ node, slot, fill, bar, weight, line, cells: [], k: -1, at: -1, state: "" });
      this.rows.append(node);
    }
    while (this.pool.length > count) this.pool.pop().node.remove();
  }

  /**
   * Rows and columns in sight.
   * @param {RunRecord} record
   * @param {number} left where the line is scrolled to
   */
  _window(record, left) {
    const { width, height } = this._size();
    const visible = Math.ceil(height / ROW_HEIGHT) + 1;
    const count = Math.min(record.K, visible);
    const top = Math.floor(this.el.scrollTop / ROW_HEIGHT);
    const first = clamp(top, 0, record.K - count);
    const right = left + width - HEAD_WIDTH;
    let [from, to] = [0, record.T];
    while (from < record.T && this.offsets[from + 1] < left) from++;
    while (to > from && this.offsets[to - 1] > right) to--;
    return { first, count, from, to };
  }

  _size() {
    const { width, height } = SIZES.get(this.el) ?? measure(this.el);
    return { width: width || 600, height: height || 520 };
  }

  /**
   * Furthest scroll: no word is cut at the left edge while the last column is whole.
   * @param {number} T
   */
  _end(T) {
    const least = this.offsets[T] - (this.measuredWidth - HEAD_WIDTH);
    return this.offsets.find((edge) => edge >= least) ?? 0;
  }

  /**
   * Where to scroll so that the column of a new step is in sight.
   * @param {any} view
   * @returns {number}
   */
  _followStep({ t, record }) {
    if (t === this.shownStep) return this.el.scrollLeft;
    const at = this.kept ?? this.el.scrollLeft;
    this.kept = null;
    this.shownStep = t;
    const s = Math.max(0, t - 1);
    const room = this._size().width - HEAD_WIDTH;
    const [left, right] = [this.offsets[s], this.offsets[Math.min(s + 1, record.T)]];
    const end = this._end(record.T);
    if (right > at + room) {
      const least = right - room;
      return Math.min(end, this.offsets.find((edge) => edge >= least) ?? least);
    }
    if (left < at) return t <= 1 ? 0 : this._edgeBefore(clamp(left - room / 3, 0, end));
    return at;
  }

  /** @param {number} at */
  _edgeBefore(at) {
    return this.offsets.findLast((edge) => edge <= at) ?? 0;
  }

  /** Bring a particle's row into sight. @param {any} view @param {number} slot */
  reveal({ record, t, sort }, slot) {
    const at = record.order(t, sort).indexOf(slot) * ROW_HEIGHT;
    const room = this._size().height - HEADER_HEIGHT;
    if (at < this.el.scrollTop) this.el.scrollTop = at;
    else if (at + ROW_HEIGHT > this.el.scrollTop + room) this.el.scrollTop = at + ROW_HEIGHT - room;
  }

  /** @param {any} view the state of the view, see main.js */
  draw(view) {
    const { record, t } = view;
    if (this._size().width !== this.measuredWidth) this.measure(record, view.theme);
    const left = this._followStep(view);
    const range = this._window(record, left);
    if (left !== this.el.scrollLeft) this.el.scrollLeft = left;
    this.columns.forEach((column, s) => {
      const state = s === t - 1 ? "pv-now" : s >= t ? "pv-ahead" : "";
      if (column.state !== state) column.name.className = `pv-column ${(column.state = state)}`;
      const on = s < t && record.resampled[s] === 1;
      if (column.on !== on) column.mark.classList.toggle("pv-on", (column.on = on));
    });
    this._fill(range.count);
    const order = record.order(t, view.sort);
    const full = Math.min(1, 4 / record.K);
    const genealogy = record.genealogy(t);
    let active = "";
    for (let i = range.first; i < range.first + range.count; i++) {
      const row = this.pool[i % range.count];
      this._drawHead(row, i, order[i], record.weight(t, order[i]), full, record.K);
      const related = view.related[order[i]] === 1;
      this._setState(row, related, record.weight(t, order[i]) === 0);
      if (related && !active) active = row.node.id;
      this._drawCells(row, order[i], range, view, genealogy);
    }
    if (active) this.el.setAttribute("aria-activedescendant", active);
    else this.el.removeAttribute("aria-activedescendant");
  }

  /**
   * @param {any} row
   * @param {number} i
   * @param {number} k
   * @param {number} weight
   * @param {number} full weight of a full bar
   * @param {number} K
   */
  _drawHead(row, i, k, weight, full, K) {
    if (row.at !== i) {
      row.at = i;
      row.node.style.transform = `translateY(${i * ROW_HEIGHT}px)`;
      row.node.id = `${this.prefix}-row-${i}`;
      row.node.setAttribute("aria-posinset", String(i + 1));
      row.node.setAttribute("aria-setsize", String(K));
      row.bar.style.setProperty("--pv-average", `${(100 / K / full).toFixed(1)}%`);
    }
    if (row.k !== k) {
      row.k = k;
      row.node.setAttribute("data-slot", String(k));
      row.slot.textContent = String(k);
    }
    if (row.value === weight) return;
    row.value = weight;
    row.fill.style.transform = `scaleX(${Math.min(1, weight / full).toFixed(4)})`;
    row.weight.textContent = percent(weight);
  }

  /** @param {any} row @param {boolean} related @param {boolean} dead */
  _setState(row, related, dead) {
    const state = `${related} ${dead}`;
    if (row.state === state) return;
    row.state = state;
    row.node.classList.toggle("pv-selected", related);
    row.node.classList.toggle("pv-dead-row", dead);
    row.node.setAttribute("aria-selected", String(related));
  }

  /**
   * @param {any} row
   * @param {number} k
   * @param {{from: number, to: number}} range
   * @param {any} view
   * @param {any} genealogy
   */
  _drawCells(row, k, { from, to }, view, { slots }) {
    const { record, t, indices, palette, selection } = view;
    while (row.cells.length < to) {
      const node = h("span", { class: "pv-cell" });
      const text = document.createTextNode("");
      node.append(text);
      this._placeCell(node, row.cells.length);
      row.line.append(node);
      row.cells.push({ node, text, word: "", colour: "", kind: "pv-cell" });
    }
    let ended = from > 0 && from <= t && record.endsAt(from - 1, slots, k);
    for (let s = from; s < to; s++) {
      const cell = row.cells[s];
      let [word, colour, kind] = ["", "", "pv-cell"];
      if (s < t) {
        const slot = slots[s * record.K + k];
        const at = s * record.K + slot;
        word = record.words[record.tokens[at]];
        // After the end of a text its EOS repeats: mark it once, then leave dots.
        if (ended) [word, kind] = ["·", "pv-cell pv-ended"];
        ended = record.tokens[at] === record.header.eos;
        colour = palette.cell[indices[at]];
        if (indices[at] === DEAD) kind += " pv-dead";
        if (selection && s < selection.step && selection.path[s] === slot) kind += " pv-shared";
      }
      if (cell.word !== word) {
        cell.word = word;
        cell.text.data = word;
        if (word.length > 6) cell.node.title = word;
        else if (cell.node.title) cell.node.removeAttribute("title");
      }
      if (cell.colour !== colour) cell.node.style.backgroundColor = cell.colour = colour;
      if (cell.kind !== kind) cell.node.className = cell.kind = kind;
    }
  }
}

/** @param {number[]} values @param {number} share */
function quantile(values, share) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}
