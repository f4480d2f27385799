/** @file The whole population, some pixels for each particle and step, on the axis of the steps. */

import { clamp, css, fitCanvas, h, mix } from "./dom.js";
import { LEFT, RIGHT, arrow, dot, line, rect, shareAt, word } from "./plot.js";
import { CHOSEN, FAINT, LIVING, eachStrand } from "./ribbons.js";
import { pack } from "./scales.js";

/** Height of the row of resampling marks above the cells. */
const AXIS_HEIGHT = 13;

export class Population {
  /** @param {(step: number, slot: number) => void} onPick @param {AbortSignal} signal */
  constructor(onPick, signal) {
    this.canvas = h("canvas", { class: "pv-population-canvas", role: "img" });
    this.el = h("div", { class: "pv-population" }, this.canvas);
    this.onPick = onPick;
    this.canvas.addEventListener("click", (event) => this._click(event), { signal });
  }

  /** @param {MouseEvent} event */
  _click(event) {
    if (!this.view) return;
    const { record, t, order } = this.view;
    const box = this.canvas.getBoundingClientRect();
    const y = (event.clientY - box.top - AXIS_HEIGHT) / (box.height - AXIS_HEIGHT);
    const s = Math.floor(shareAt(this.canvas, event) * record.T);
    if (s < 0 || s >= t || y < 0) return;
    const row = clamp(Math.floor(y * record.K), 0, record.K - 1);
    this.onPick(s + 1, order.column(s)[row]);
  }

  /** @param {any} view the state of the view, see particle_view.js */
  draw(view) {
    this.view = view;
    const { record, t, theme } = view;
    const { K, T } = record;
    const extent = `${AXIS_HEIGHT + clamp(K * 14, 56, 150)}px`;
    if (this.canvas.style.height !== extent) this.canvas.style.height = extent;
    const { context, width, height, ratio } = fitCanvas(this.canvas);
    const wide = Math.round((width - LEFT - RIGHT) * ratio);
    const tall = Math.round((height - AXIS_HEIGHT) * ratio);
    if (wide < T / 4 || tall < 2) return;
    if (!this.image || this.image.width !== wide || this.image.height !== tall) {
      this.image = context.createImageData(wide, tall);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    this.pixels.fill(pack(mix(theme.background, theme.text, 0.035)));
    const pitch = wide / T;
    for (let s = 0; s < t; s++) {
      const gap = this._gap(record, s, pitch, ratio);
      const start = Math.round(s * pitch);
      const body = Math.min(Math.round(s * pitch + gap), Math.max(start, Math.round((s + 1) * pitch) - 1));
      this._cells(view, s, body, Math.round((s + 1) * pitch));
      if (s > 0 && record.resampled[s] && body > start) this._strands(view, s, start, body);
    }
    context.putImageData(this.image, LEFT * ratio, AXIS_HEIGHT * ratio);
    this._labels(context, view, width, height);
    this._lineage(context, view, width, height);
    this._window(context, view, width, height);
    const first = t > 0 ? view.genealogy.survivors[0] : K;
    const label =
      `Population: ${K} particles by ${T} steps, shown to step ${t}: ` +
      `${first} of the ${K} first tokens have descendants`;
    if (this.label !== label) this.canvas.setAttribute("aria-label", (this.label = label));
  }

  /** @param {RunRecord} record @param {number} s @param {number} pitch @param {number} ratio */
  _gap(record, s, pitch, ratio) {
    if (record.resampled[s] && s > 0) return Math.min(0.5 * pitch, 16 * ratio);
    return pitch > 5 * ratio ? ratio : 0;
  }

  /** One column, many slots to a pixel if need be. @param {any} view @param {number} s @param {number} from @param {number} to */
  _cells(view, s, from, to) {
    const { record, indices, palette, order, marks, genealogy: { heirs } } = view;
    const { K } = record;
    const { width: wide, height: tall } = this.image;
    const slots = order.column(s);
    const spaced = tall / K >= 5;
    for (let row = 0, y = 0; row < K; ) {
      const [top, count] = [y, tall < K ? Math.floor(((y + 1) * K) / tall) - row : 1];
      let [sum, living, chosen] = [0, 0, 0];
      for (let i = row; i < row + count; i++) {
        const at = s * K + slots[i];
        sum += indices[at];
        living += heirs[at];
        chosen += marks ? marks[at] : 0;
      }
      row += count;
      y = tall < K ? y + 1 : Math.round((row * tall) / K);
      const plain = living > 0 ? palette.overview : palette.faded;
      const shades = !marks ? plain : chosen > 0 ? palette.overview : living > 0 ? palette.dim : palette.faded;
      const colour = shades[Math.round(sum / count)];
      for (let line = top; line < (spaced ? y - 1 : y); line++) {
        this.pixels.fill(colour, line * wide + from, line * wide + to);
      }
    }
  }

  /** Ribbons into column s. @param {any} view @param {number} s @param {number} from @param {number} to */
  _strands(view, s, from, to) {
    const { theme, record: { K } } = view;
    const { width: wide, height: tall } = this.image;
    const shades = (theme.dark ? [0.2, view.marks ? 0.3 : 0.55] : [0.1, view.marks ? 0.2 : 0.36]).map((share) => pack(mix(theme.background, theme.text, share)));
    const colours = [...shades, pack(theme.lineage)];
    const row = tall / K;
    const eased = Array.from({ length: to - from }, (_, i) => {
      const f = (i + 0.5) / (to - from);
      return f * f * (3 - 2 * f);
    });
    for (const drawn of [FAINT, LIVING, CHOSEN]) {
      eachStrand(view, s, (parent, share, part, rank, kind) => {
        if (kind !== drawn) return;
        const [p0, c0] = [(parent + share) * row, rank * row];
        const [p1, c1] = [p0 + part * row, c0 + row];
        for (let i = 0; i < eased.length; i++) {
          const y0 = Math.floor(p0 + (c0 - p0) * eased[i]);
          const y1 = Math.min(tall, Math.max(y0 + 1, Math.floor(p1 + (c1 - p1) * eased[i])));
          for (let y = y0; y < y1; y++) this.pixels[y * wide + from + i] = colours[kind];
        }
      });
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {any} view @param {number} width @param {number} height */
  _labels(context, { record, t, theme, sort }, width, height) {
    const { K, T } = record;
    const pitch = (width - LEFT - RIGHT) / T;
    context.font = `11px ${theme.font}`;
    context.textBaseline = "alphabetic";
    const [first, last] = { slot: ["0", String(K - 1)], weight: ["heavy", "light"], loss: ["worst", "best"], lineage: ["", ""] }[sort];
    word(context, first, LEFT - 6, AXIS_HEIGHT + 9, css(theme.muted), "right");
    if (K > 1) word(context, last, LEFT - 6, height - 2, css(theme.muted), "right");
    context.save();
    context.translate(11, AXIS_HEIGHT + (height - AXIS_HEIGHT) / 2);
    context.rotate(-Math.PI / 2);
    word(context, { slot: "slots", weight: "by weight", loss: "by loss", lineage: "families" }[sort], 0, 0, css(theme.muted), "center");
    context.restore();
    const half = clamp(0.4 * pitch, 1, 4);
    for (let s = 0; s < t; s++) {
      if (!record.resampled[s]) continue;
      const x = LEFT + s * pitch + Math.min(0.25 * pitch, 8);
      arrow(context, x, AXIS_HEIGHT - 9, AXIS_HEIGHT - 2, half, css(theme.orange));
    }
    const now = clamp(LEFT + t * pitch - 0.75, LEFT, width - RIGHT - 0.75);
    rect(context, now, AXIS_HEIGHT - 4, 1.5, height, css(theme.text));
  }

  /** The selected particle's ancestors as a line. @param {CanvasRenderingContext2D} context @param {any} view @param {number} width @param {number} height */
  _lineage(context, { record, t, selection, theme, order }, width, height) {
    if (!selection || t === 0) return;
    const path = selection.path.subarray(0, Math.min(t, selection.step));
    const pitch = (width - LEFT - RIGHT) / record.T;
    const row = (height - AXIS_HEIGHT) / record.K;
    const points = Array.from(path, (/** @type {number} */ slot, /** @type {number} */ s) => [
      LEFT + (s + 0.65) * pitch,
      AXIS_HEIGHT + (order.ranks(s)[slot] + 0.5) * row,
    ]);
    context.lineJoin = "round";
    for (const [colour, size] of [[css(theme.background, 0.8), 4], [css(theme.lineage), 2]]) {
      line(context, points, /** @type {string} */ (colour), /** @type {number} */ (size));
    }
    const [x, y] = points[points.length - 1];
    dot(context, x, y, 3.5, css(theme.lineage));
  }

  /** The part that the grid shows. @param {CanvasRenderingContext2D} context @param {any} view @param {number} width @param {number} height */
  _window(context, { record, theme, sight, layout }, width, height) {
    if (!sight || layout !== "slots") return;
    const { K, T } = record;
    const all = sight.first === 0 && sight.last >= K && sight.from === 0 && sight.to >= T;
    if (all) return;
    const [pitch, row] = [(width - LEFT - RIGHT) / T, (height - AXIS_HEIGHT) / K];
    const box = [
      LEFT + sight.from * pitch,
      AXIS_HEIGHT + sight.first * row,
      (Math.min(sight.to, T) - sight.from) * pitch,
      Math.max(3, (Math.min(sight.last, K) - sight.first) * row),
    ];
    context.strokeStyle = css(theme.text, 0.75);
    context.lineWidth = 1;
    context.setLineDash([4, 3]);
    context.strokeRect(box[0] + 0.5, box[1] + 0.5, box[2] - 1, box[3] - 1);
    context.setLineDash([]);
  }
}
