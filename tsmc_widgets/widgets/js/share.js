/** @file One menu for all that leaves the page: code, spec, figure, and the page itself. */

import { SIZES, button, css, download, h, probe, recordInto, svgNode } from "./dom.js";

/** Pixels of a figure for one on the screen. */
const SHARP = 2;
const LINE = 20;
const GAP = 12;

/** Cut a text into lines of at most so many letters. @param {string} text @param {number} most */
function wrapped(text, most) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1).length + word.length < most) lines.push(`${lines.pop()} ${word}`.trimStart());
    else lines.push(word);
  }
  return lines;
}

/** @param {string} colour @param {string} as the attribute @returns {Record<string, string>} */
function paint(colour, as) {
  // Other programs than browsers know no rgba in an SVG.
  const [, rgb, alpha] = /^rgba\((.*),([\d.]+)\)$/.exec(colour) ?? [null, null, "1"];
  return { [as]: rgb ? `rgb(${rgb})` : colour, [`${as}-opacity`]: alpha };
}

/** As much of a canvas's context as the plots use: what they draw becomes SVG. */
class SvgContext {
  constructor() {
    this.root = this.at = svgNode("g");
    Object.assign(this, { font: "", dash: [], path: "", textAlign: "left", textBaseline: "" });
  }

  /** @param {string} tag @param {Record<string, any>} attributes */
  _add(tag, attributes) {
    return this.at.appendChild(svgNode(tag, attributes));
  }

  get _pen() {
    const look = { "stroke-width": this.lineWidth, "stroke-dasharray": this.dash.join(" ") };
    return { fill: "none", "stroke-linejoin": "round", ...paint(this.strokeStyle, "stroke"), ...look };
  }

  measureText(text) {
    Object.assign(probe, { font: this.font });
    return probe.measureText(text);
  }

  createImageData(width, height) {
    return new ImageData(width, height);
  }

  putImageData(image, x, y) {
    const canvas = h("canvas", { width: String(image.width), height: String(image.height) });
    canvas.getContext("2d").putImageData(image, 0, 0);
    const [left, top, width, height] = [x, y, image.width, image.height].map((v) => v / SHARP);
    this._add("image", { x: left, y: top, width, height, href: canvas.toDataURL() });
  }

  fillRect(x, y, width, height) {
    this._add("rect", { x, y, width, height, ...paint(this.fillStyle, "fill") });
  }

  strokeRect(x, y, width, height) {
    this._add("rect", { x, y, width, height, ...this._pen });
  }

  beginPath() {
    this.path = "";
  }

  moveTo(x, y) {
    this.path += `M${x.toFixed(2)} ${y.toFixed(2)}`;
  }

  lineTo(x, y) {
    this.path += `${this.path ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`;
  }

  arc(x, y, r) {
    this.path += `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
  }

  stroke() {
    this._add("path", { d: this.path, ...this._pen });
  }

  fill() {
    this._add("path", { d: this.path, ...paint(this.fillStyle, "fill") });
  }

  setLineDash(dash) {
    this.dash = dash;
  }

  _write(text, x, y, look) {
    const anchor = { center: "middle", right: "end" }[this.textAlign] ?? "start";
    const middle = this.textBaseline === "middle" ? "central" : "auto";
    const style = `font: ${this.font}; font-variant-numeric: tabular-nums`;
    const node = this._add("text", { x, y, "text-anchor": anchor, "dominant-baseline": middle, style, ...look });
    node.textContent = text;
  }

  fillText(text, x, y) {
    this._write(text, x, y, paint(this.fillStyle, "fill"));
  }

  strokeText(text, x, y) {
    this._write(text, x, y, this._pen);
  }

  save() {
    this.at = /** @type {any} */ (this._add("g", {}));
  }

  translate(x, y) {
    this.at.setAttribute("transform", `translate(${x} ${y})`);
  }

  rotate(angle) {
    this.at.setAttribute("transform", `${this.at.getAttribute("transform")} rotate(${(angle * 180) / Math.PI})`);
  }

  restore() {
    this.at = /** @type {any} */ (this.at.parentNode);
  }
}

/** The context of a canvas with the pixels of a figure. @param {number} width @param {number} height @returns {any} */
function bitmap(width, height) {
  const context = h("canvas", { width: String(width * SHARP), height: String(height * SHARP) }).getContext("2d");
  context.scale(SHARP, SHARP);
  return context;
}

/**
 * Plots one under the other, each under its title, as SVG or PNG.
 * @param {"svg" | "png"} kind @param {string[]} words above them
 * @param {{canvas: HTMLCanvasElement, title: string, draw: () => void}[]} plots @param {Theme} theme
 * @returns {Promise<Blob | string>}
 */
async function figure(kind, words, plots, theme) {
  const sizes = plots.map(({ canvas }) => SIZES.get(canvas) ?? { width: 0, height: 0 });
  const width = Math.max(...sizes.map((size) => size.width));
  const lines = words.flatMap((each) => wrapped(each, width / 7));
  const tall = GAP + LINE * lines.length + sizes.reduce((sum, size) => sum + size.height + LINE + GAP, 0);
  const context = kind === "svg" ? new SvgContext() : bitmap(width, tall);
  context.fillStyle = css(theme.background);
  context.fillRect(0, 0, width, tall);
  let y = GAP;
  const write = (/** @type {string} */ text, /** @type {string} */ weight) => {
    Object.assign(context, { font: `${weight} 12px ${theme.font}`, fillStyle: css(theme.text), textAlign: "left", textBaseline: "alphabetic" });
    context.fillText(text, 8, y + 12);
    y += LINE;
  };
  lines.forEach((line, i) => write(line, i ? "400" : "600"));
  plots.forEach((plot, i) => {
    write(plot.title, "600");
    const part = kind === "svg" ? new SvgContext() : bitmap(sizes[i].width, sizes[i].height);
    recordInto(plot.canvas, { context: part, ...sizes[i], ratio: SHARP }, plot.draw);
    if (kind === "png") context.drawImage(part.canvas, 0, y, sizes[i].width, sizes[i].height);
    else context.root.appendChild(part.root).setAttribute("transform", `translate(0 ${y})`);
    y += sizes[i].height + GAP;
  });
  if (kind === "png") return new Promise((done) => context.canvas.toBlob(done));
  const root = svgNode("svg", { viewBox: `0 0 ${width} ${tall}` });
  root.append(context.root);
  return new XMLSerializer().serializeToString(root);
}

/** The menu. What Python gives in `share` (code, spec) is offered; the page only where Python is. */
export class Share {
  /**
   * @param {any} model @param {() => any} shown lines, plots and theme of the figure
   * @param {() => void} askPage @param {AbortSignal} signal
   */
  constructor(model, shown, askPage, signal) {
    this.model = model;
    this.code = h("pre", { class: "pv-code", tabindex: "0", "aria-label": "The Python that makes this run", hidden: "" });
    this.result = h("span", { class: "pv-note", role: "status" });
    const item = (/** @type {string} */ name, /** @type {() => any} */ act) =>
      button({}, async () => {
        this.el.open = false;
        this.result.textContent = (await act()) ?? "";
      }, signal, name);
    const draw = async (/** @type {"svg" | "png"} */ kind) => {
      const { lines, plots, theme } = shown();
      const type = { svg: "image/svg+xml", png: "image/png" }[kind];
      download(`run.${kind}`, type, await figure(kind, lines, plots, theme));
    };
    this.show = item("Show code", () => this._reveal(this.code.hidden));
    const spec = () => download("run.json", "application/json", this.given.spec);
    /** What each needs of Python. @type {[any, () => boolean][]} */
    this.items = [
      [item("Copy as code", () => this._copy()), () => Boolean(this.given.code)],
      [this.show, () => Boolean(this.given.code)],
      [item("Spec as JSON", spec), () => Boolean(this.given.spec)],
      [item("Figure as PNG", () => draw("png")), () => true],
      [item("Figure as SVG", () => draw("svg")), () => true],
      [item("Page as HTML", askPage), () => !model.get("alone")],
    ];
    const list = h("div", {}, ...this.items.map(([el]) => el));
    this.el = h("details", { class: "pv-export" }, h("summary", { title: "Take this run along: code, spec, figure, page" }, "Share"), list);
    const close = (/** @type {Event} */ { target }) => this.el.contains(target) || (this.el.open = false);
    document.addEventListener("pointerdown", close, { signal });
    this.el.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.el.open = false;
      event.stopPropagation();
    }, { signal });
    const take = (/** @type {any} */ { page }, /** @type {DataView[]} */ [bytes]) => page && download(page, "text/html", bytes);
    model.on("msg:custom", take);
    signal.addEventListener("abort", () => model.off("msg:custom", take));
    this.offer();
  }

  get given() {
    return this.model.get("share") ?? {};
  }

  /** Show what there is. */
  offer() {
    for (const [el, there] of this.items) el.hidden = !there();
    this.code.textContent = this.given.code ?? "";
    this.result.textContent = "";
  }

  /** @param {boolean} open */
  _reveal(open) {
    this.code.hidden = !open;
    this.show.textContent = open ? "Hide code" : "Show code";
  }

  async _copy() {
    try {
      await navigator.clipboard.writeText(this.given.code);
      return "Copied";
    } catch {
      // Without a right to the clipboard a person copies what is selected.
      this._reveal(true);
      getSelection()?.selectAllChildren(this.code);
      return "Selected: copy it by keyboard";
    }
  }
}
