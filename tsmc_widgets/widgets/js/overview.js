/**
 * @file The whole population, a pixel or more for each particle and step, and the lineage on it.
 */

/** Height of the step axis above the cells, the same as in the grid of texts. */
const AXIS_HEIGHT = HEADER_HEIGHT;

class Overview {
  /** @param {(step: number, slot: number) => void} onPick @param {AbortSignal} signal */
  constructor(onPick, signal) {
    this.canvas = h("canvas", { class: "pv-overview-canvas", role: "img" });
    this.note = h("p", { class: "pv-note" });
    this.el = h(
      "section",
      { class: "pv-overview", "aria-label": "Population" },
      h("h4", {}, "Population"),
      this.canvas,
      this.note,
    );
    this.bitmap = document.createElement("canvas");
    this.onPick = onPick;
    this.canvas.addEventListener("click", (event) => this._click(event), { signal });
  }

  /** @param {MouseEvent} event */
  _click(event) {
    if (!this.record) return;
    const box = this.canvas.getBoundingClientRect();
    const { T, K } = this.record;
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top - AXIS_HEIGHT) / (box.height - AXIS_HEIGHT);
    const step = clamp(Math.ceil(x * T), 1, T);
    if (step <= this.t) this.onPick(step, clamp(Math.floor(y * K), 0, K - 1));
  }

  /** @param {any} view the state of the view, see main.js */
  draw(view) {
    const { record, t, palette, theme, indices } = view;
    const { K, T } = record;
    this.record = record;
    this.t = t;
    const extent = K < 24 ? `${AXIS_HEIGHT + K * ROW_HEIGHT}px` : "";
    if (this.canvas.style.height !== extent) this.canvas.style.height = extent;
    const { context, width, height, ratio } = fitCanvas(this.canvas);
    if (width < 2 || height <= AXIS_HEIGHT + 2) return;
    const body = height - AXIS_HEIGHT;
    const rows = Math.min(K, Math.max(1, Math.floor(body * ratio)));
    context.fillStyle = css(theme.grid, 0.35);
    context.fillRect(0, AXIS_HEIGHT, width, body);
    if (t > 0) {
      this._paint(record, t, rows, indices, palette);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.bitmap, 0, 0, t, rows, 0, AXIS_HEIGHT, (width * t) / T, body);
    }
    this._marks(context, record, t, width, theme);
    this._lineage(context, view, width, body);
    const { survivors } = record.genealogy(t);
    const first = t > 0 ? survivors[0] : K;
    this.canvas.setAttribute(
      "aria-label",
      `${K} particles by ${T} steps, shown to step ${t}: ` +
        `${first} of the ${K} first tokens have descendants`,
    );
    const binned = rows < K ? ` One line is the mean of ${(K / rows).toFixed(1)} slots.` : "";
    this.note.textContent =
      `Row: slot, column: step. Pale: died out. ▼ resampled.${binned}`;
  }

  /**
   * @param {RunRecord} record
   * @param {number} t
   * @param {number} rows
   * @param {Uint8Array} indices
   * @param {any} palette
   */
  _paint(record, t, rows, indices, palette) {
    const { K } = record;
    const { alive } = record.genealogy(t);
    if (this.bitmap.width < t || this.bitmap.height !== rows) {
      this.bitmap.width = Math.max(t, record.T);
      this.bitmap.height = rows;
    }
    const context = /** @type {CanvasRenderingContext2D} */ (this.bitmap.getContext("2d"));
    const image = context.createImageData(t, rows);
    const pixels = new Uint32Array(image.data.buffer);
    for (let s = 0; s < t; s++) {
      for (let row = 0; row < rows; row++) {
        const start = s * K + Math.floor((row * K) / rows);
        const end = rows === K ? start + 1 : s * K + Math.floor(((row + 1) * K) / rows);
        let sum = 0;
        let living = 0;
        for (let i = start; i < end; i++) {
          sum += indices[i];
          living += alive[i];
        }
        const index = Math.round(sum / (end - start));
        pixels[row * t + s] = (living > 0 ? palette.overview : palette.faded)[index];
      }
    }
    context.putImageData(image, 0, 0);
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {RunRecord} record
   * @param {number} t
   * @param {number} width
   * @param {Theme} theme
   */
  _marks(context, record, t, width, theme) {
    context.font = `11px ${theme.font}`;
    context.fillStyle = css(theme.muted);
    context.textAlign = "left";
    context.fillText("1", 1, 11);
    context.textAlign = "right";
    if (record.T > 1) context.fillText(`step ${record.T}`, width - 1, 11);
    context.fillStyle = css(theme.orange);
    const half = clamp((0.5 * width) / record.T, 1, 3.5);
    for (let s = 0; s < t; s++) {
      if (!record.resampled[s]) continue;
      const x = (s * width) / record.T;
      context.beginPath();
      context.moveTo(x - half, AXIS_HEIGHT - 8);
      context.lineTo(x + half, AXIS_HEIGHT - 8);
      context.lineTo(x, AXIS_HEIGHT - 1);
      context.fill();
    }
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {any} view
   * @param {number} width
   * @param {number} body
   */
  _lineage(context, view, width, body) {
    const { record, t, selection, theme } = view;
    if (!selection || t === 0) return;
    const x = (/** @type {number} */ s) => ((s + 0.5) * width) / record.T;
    const y = (/** @type {number} */ k) => AXIS_HEIGHT + ((k + 0.5) * body) / record.K;
    const lines = [selection.path.subarray(0, Math.min(t, selection.step))];
    if (t > selection.step) {
      const { slots } = record.genealogy(t);
      const at = (selection.step - 1) * record.K;
      for (let k = 0; k < record.K && lines.length < 400; k++) {
        if (slots[at + k] === selection.slot) lines.push(record.lineage(t, k));
      }
    }
    for (const [colour, size] of [[css(theme.background), 4], [css(theme.lineage), 2]]) {
      context.strokeStyle = /** @type {string} */ (colour);
      context.lineWidth = /** @type {number} */ (size);
      context.lineJoin = "round";
      for (const path of lines) {
        context.beginPath();
        path.forEach((slot, s) => context.lineTo(x(s), y(slot)));
        if (path.length === 1) context.lineTo(x(0) + 1, y(path[0]));
        context.stroke();
      }
    }
  }
}
