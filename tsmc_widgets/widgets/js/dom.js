/** @file Elements, icons, numbers and colours. Nothing here knows of particles. */


const FOCUSABLE = new Set(["button", "select", "input", "summary"]);

/**
 * Make an element. Strings among the children become text nodes: text is never parsed as HTML.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node|string)} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (FOCUSABLE.has(tag) || "tabindex" in attributes) keepKeys(node);
  node.append(...children);
  return node;
}

/**
 * A button.
 * @param {Record<string, string>} attributes @param {() => void} act when it is pressed
 * @param {AbortSignal} signal
 * @param {...(Node|string)} children
 */
export function button(attributes, act, signal, ...children) {
  const node = h("button", { type: "button", ...attributes }, ...children);
  node.addEventListener("click", act, { signal });
  return node;
}

/**
 * A table with a row of titles.
 * @param {(string | [string, Record<string, string>])[]} titles texts of the cells, and their attributes
 * @param {Node} body
 * @param {Record<string, string>} [attributes] of the table
 */
export function table(titles, body, attributes = {}) {
  const cells = titles.map((title) => {
    const [text, own] = typeof title === "string" ? [title, {}] : title;
    return h("th", { scope: "col", ...own }, text);
  });
  return h("table", attributes, h("thead", {}, h("tr", {}, ...cells)), body);
}

/** By element, what it was last filled for. @type {WeakMap<Element, any>} */
const FILLED = new WeakMap();

/** Fill an element again where `sign` is another than before: focus and marked text stay. @param {Element} node @param {any} sign @param {() => (Node | string)[]} make */
export function refill(node, sign, make) {
  if (FILLED.has(node) && FILLED.get(node) === sign) return;
  FILLED.set(node, sign);
  node.replaceChildren(...make());
}

/** Set an element's text where it is another: what stays is not read out again. @param {Node} node @param {string} text */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Hand a file to the browser. @param {string} name @param {string} type @param {BlobPart} content */
export function download(name, type, content) {
  const link = h("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  // The browser has taken hold of it once it has turned to the click.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** An element of an SVG. @param {string} tag @param {Record<string, any>} [attributes] */
export function svgNode(tag, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/**
 * An SVG that only adorns, with paths.
 * @param {string} box @param {Record<string, string>[]} paths attributes of each
 */
export function svg(box, paths) {
  const drawn = svgNode("svg", { viewBox: box, "aria-hidden": "true" });
  drawn.append(...paths.map((path) => svgNode("path", path)));
  return drawn;
}

/** A bar that is filled in part. @param {number} part in [0, 1] @param {string} [kind] a class of the filled part */
export function meter(part, kind = "") {
  const filled = h("span", { class: `pv-filled ${kind}`.trim() });
  filled.style.width = `${100 * clamp(part || 0, 0, 1)}%`;
  return h("span", { class: "pv-meter", "aria-hidden": "true" }, filled);
}

/** Without this JupyterLab reads the keys too, and `d d` deletes the cell. @param {Element} node */
export function keepKeys(node) {
  node.setAttribute("data-lm-suppress-shortcuts", "true");
}

/** Icons of the buttons, as paths in a 16 x 16 box. */
const ICONS = {
  rewind: "M3 3h2v10H3zM13 3v10L6 8z",
  back: "M11 3h2v10h-2zM9 3v10L3 8z",
  play: "M4 2.5v11l9-5.5z",
  pause: "M4 3h3v10H4zM9 3h3v10H9z",
  step: "M3 3h2v10H3zM7 3v10l6-5z",
  stop: "M3.5 3.5h9v9h-9z",
  again: "M8 2.5V0L4 3.5 8 7V4.5A4 4 0 1 1 4 8.5H2A6 6 0 1 0 8 2.5z",
};

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  return svg("0 0 16 16", [{ d: ICONS[name] }]);
}

/** Stands for bytes of a character that a later token may complete. */
export const WAITS = "◌";
/** Before letters that go on the word before. */
export const GOES_ON = "‿";
/** Letters of scripts that put blanks between words. */
const OF_WORD = /^(?!\p{sc=Han}|\p{sc=Hiragana}|\p{sc=Katakana}|\p{sc=Thai}|\p{sc=Lao}|\p{sc=Khmer}|\p{sc=Myanmar})\p{L}/u;
/** Signs that are not seen alone, or turn the text around them. */
const UNSEEN = /^[\p{M}\p{Cf}\p{Cc}]+$/u;

/**
 * A token as a cell shows it: blanks that would not be seen become marks. Where tokens bring the blank
 * before a word, the rarer case is marked: a word without one goes on, another sign has one (␣).
 * @param {string} text @param {boolean} [spaced] whether tokens of this vocabulary bring their blanks
 */
export function readable(text, spaced = false) {
  const marked = text.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥");
  const word = marked.trim();
  if (word === "") return marked === "" ? "∅" : "␣";
  if (UNSEEN.test(word)) return Array.from(word, codePoint).join(" ");
  if (!spaced || word === WAITS) return word;
  const own = marked.startsWith(" ");
  if (OF_WORD.test(word)) return own ? word : GOES_ON + word;
  return own ? `␣${word}` : word;
}

/** @param {string} sign */
function codePoint(sign) {
  return `U+${(sign.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** Whether a token brings the blank before a word. @param {string} text */
export function bringsBlank(text) {
  return /^ \S/.test(text);
}

/** @param {number} value @param {number} [digits] */
export function number(value, digits = 2) {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "−");
}

/** A share of the whole weight, in per cent. @param {number} share in [0, 1]; NaN where it is not known */
export function percent(share) {
  if (Number.isNaN(share)) return "–";
  if (share <= 0) return "0 %";
  const digits = [0.0995, 0.00095, 0.000095, 0.0000095].findIndex((least) => share >= least);
  return digits < 0 ? "≈ 0 %" : `${(100 * share).toFixed(digits)} %`;
}

/** @param {number} count @param {string} noun */
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** @param {number} value @param {number} low @param {number} high */
export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

/** @typedef {[number, number, number]} Rgb */

/**
 * Colour `over` with the given alpha on `under`.
 * @param {Rgb} under
 * @param {number[]} over
 * @param {number} alpha
 * @returns {Rgb}
 */
export function mix(under, over, alpha) {
  return /** @type {Rgb} */ (under.map((base, i) => base + (over[i] - base) * alpha));
}

/** @param {number[]} rgb @param {number} [alpha] */
export function css(rgb, alpha = 1) {
  return `rgba(${rgb.map((part) => Math.round(part)).join(",")},${alpha.toFixed(3)})`;
}

export const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

/**
 * Any CSS colour as it looks on `under`.
 * @param {string} colour
 * @param {Rgb} under
 * @returns {Rgb}
 */
export function resolve(colour, under) {
  if (!probe) return under;
  probe.canvas.width = probe.canvas.height = 1;
  probe.fillStyle = css(under);
  probe.fillRect(0, 0, 1, 1);
  probe.fillStyle = colour;
  probe.fillRect(0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
  return [r, g, b];
}

/** @param {Rgb} rgb */
export function isDark(rgb) {
  return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 128;
}

/** @type {WeakMap<Element, {width: number, height: number}>} */
export const SIZES = new WeakMap();

/**
 * Keep track of the sizes of elements, so that drawing reads no layout that it has just changed.
 * @param {Element[]} elements @param {() => void} changed @param {AbortSignal} signal
 */
export function watchSizes(elements, changed, signal) {
  const watcher = new ResizeObserver((entries) => {
    for (const { target } of entries) measure(target);
    changed();
  });
  for (const element of elements) watcher.observe(element);
  signal.addEventListener("abort", () => watcher.disconnect());
}

/**
 * Size of an element inside its border. A hidden cell reports 0: keep the last.
 * @param {Element} element
 */
export function measure(element) {
  const { clientWidth: width, clientHeight: height } = element;
  if (width > 0 && height > 0) SIZES.set(element, { width, height });
  return SIZES.get(element) ?? { width: 0, height: 0 };
}

/** What is drawn in place of a canvas. @type {WeakMap<HTMLCanvasElement, any>} */
const RECORDERS = new WeakMap();

/** Draw what is meant for a canvas elsewhere. @param {HTMLCanvasElement} canvas @param {any} elsewhere as `fitCanvas` gives it @param {() => void} draw */
export function recordInto(canvas, elsewhere, draw) {
  RECORDERS.set(canvas, elsewhere);
  draw();
  RECORDERS.delete(canvas);
}

/** A canvas whose bitmap follows the size it is shown at. @param {HTMLCanvasElement} canvas */
export function fitCanvas(canvas) {
  const elsewhere = RECORDERS.get(canvas);
  if (elsewhere) return elsewhere;
  const ratio = globalThis.devicePixelRatio || 1;
  const { width, height } = SIZES.get(canvas) ?? measure(canvas);
  const [w, t] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== t) [canvas.width, canvas.height] = [w, t];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height, ratio };
}
