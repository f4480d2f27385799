/** @file The quantities that colour a token, each on a fixed and labelled scale. */

import { GOES_ON, WAITS, clamp, css, h, isDark, mix, resolve } from "./dom.js";
import { ENDS } from "./record.js";

const BLUE = [0, 114, 178];
const ORANGE = [230, 159, 0];
const SKY = [86, 180, 233];
const CIVIDIS = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [187, 174, 110], [253, 231, 55]];

/**
 * @typedef {object} Quantity
 * @property {string} label in the menu
 * @property {string} caption beside the legend, with its unit
 * @property {number} low value at the left end; smaller ones look the same
 * @property {number} high value at the right end
 * @property {boolean} diverging two colours about the middle, or one ramp
 * @property {string[]} ticks at the ends and in the middle
 * @property {(record: RunRecord, i: number) => number} value of cell i
 */

/**
 * A quantity in nats, from below 0 to as far above, or from 0.
 * @param {string} label @param {string} caption @param {[number, number]} ends
 * @param {Quantity["value"]} value @returns {Quantity}
 */
function nats(label, caption, [low, high], value) {
  const ticks = low < 0 ? [`−${-low}`, "0", `+${high}`] : [low, (low + high) / 2, high].map(String);
  return { label, caption, low, high, diverging: low < 0, ticks, value };
}

/** @type {Record<string, Quantity>} */
export const QUANTITIES = {
  weight: {
    label: "weight",
    caption: "weight ÷ average 1/K",
    low: -3,
    high: 3,
    diverging: true,
    ticks: ["⅛ ×", "1 ×", "8 ×"],
    value: (record, i) => Math.log2(record.K * record.weights[i]),
  },
  increment: nats("log increment", "log weight gained by the step (nats)", [-4, 4], (record, i) => record.logIncrement[i]),
  psi: nats("log ψ", "log ψ of the text so far, log φ at step T (nats)", [-8, 8], (record, i) => record.logPsi[i]),
  gain: nats("token's part of ψ", "owed to the token drawn (nats); log ψ gain where that is not recorded", [-4, 4],
    (record, i) => (Number.isNaN(record.drawn[i]) ? record.gain[i] : record.drawn[i])),
  surprise: nats("surprise under p₀", "surprise −log p₀ of the token (nats)", [0, 8], (record, i) => -record.logP[i]),
};

/** Index of a dead cell (value −inf); the others run from 1 to 255. */
export const DEAD = 0;

/** Colour indices of every recorded cell. @param {RunRecord} record @param {Quantity} quantity */
export function colourIndices(record, quantity) {
  const indices = new Uint8Array(record.steps * record.K);
  const scale = 254 / (quantity.high - quantity.low);
  for (let i = 0; i < indices.length; i++) {
    const value = quantity.value(record, i);
    const dead = Number.isNaN(value) || record.weights[i] === 0;
    indices[i] = dead ? DEAD : 1 + clamp(Math.round((value - quantity.low) * scale), 0, 254);
  }
  return indices;
}

/**
 * Hue and strength in [0, 1] at a point of the scale.
 * @param {Quantity} quantity
 * @param {number} x in [0, 1]
 * @param {boolean} dark
 */
function hueAt(quantity, x, dark) {
  if (quantity.diverging) {
    return { rgb: x < 0.5 ? (dark ? SKY : BLUE) : ORANGE, strength: Math.abs(2 * x - 1) };
  }
  const at = x * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return { rgb: mix(/** @type {Rgb} */ (CIVIDIS[low]), CIVIDIS[low + 1], at - low), strength: 1 };
}

/** Colours of a theme, derived from its text and background. @param {HTMLElement} root */
export function readTheme(root) {
  root.style.colorScheme = "";
  const style = getComputedStyle(root);
  const background = resolve(style.backgroundColor, [255, 255, 255]);
  const text = resolve(style.color, background);
  const dark = isDark(background);
  // The notebook's theme decides about scroll bars and menus too, not the system's.
  root.style.colorScheme = dark ? "dark" : "light";
  return {
    background,
    text,
    dark,
    muted: mix(background, text, 0.66),
    grid: mix(background, text, 0.16),
    blue: /** @type {Rgb} */ (dark ? [86, 180, 233] : BLUE),
    orange: /** @type {Rgb} */ (dark ? ORANGE : [204, 121, 0]),
    lineage: /** @type {Rgb} */ (dark ? [230, 140, 190] : [170, 51, 119]),
    font: style.fontFamily,
  };
}

/** @typedef {ReturnType<typeof readTheme>} Theme */

/**
 * The 256 colours of a quantity: behind text (alpha capped so that the text stays readable), behind
 * the text of what died out, and both in the population.
 * @param {Quantity} quantity @param {Theme} theme
 */
export function makePalette(quantity, theme) {
  const [cell, faint] = [new Array(256), new Array(256)];
  const [overview, dim, faded] = [0, 0, 0].map(() => new Uint32Array(256));
  const neutral = mix(theme.background, theme.text, theme.dark ? 0.38 : 0.16);
  const cap = quantity.diverging || !theme.dark ? 0.55 : 0.4;
  for (let index = 0; index < 256; index++) {
    const { rgb, strength } = hueAt(quantity, Math.max(0, index - 1) / 254, theme.dark);
    const dead = index === DEAD;
    // What has little weight recedes, so that the eye finds the heavy particles first.
    const force = strength * (rgb === BLUE || rgb === SKY ? 0.55 : 1);
    const base = mix(theme.background, theme.text, 0.06);
    cell[index] = dead ? css(base) : css(mix(base, rgb, cap * force));
    faint[index] = css(mix(theme.background, mix(base, rgb, dead ? 0 : cap * force), 0.4));
    // In both themes what is dead is darker than all that lives.
    const solid = dead ? (theme.dark ? [0, 0, 0] : mix(theme.background, theme.text, 0.8)) : mix(neutral, rgb, force);
    overview[index] = pack(solid);
    dim[index] = pack(mix(theme.background, solid, 0.5));
    faded[index] = pack(mix(theme.background, solid, 0.26));
  }
  return { cell, faint, overview, dim, faded };
}

/** A colour as putImageData wants it (little-endian RGBA). @param {Rgb} rgb */
export function pack([r, g, b]) {
  return ((255 << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
}

/**
 * The legend of a quantity: a gradient with its ends and middle labelled.
 * @param {Quantity} quantity
 * @param {ReturnType<typeof makePalette>} palette
 */
export function legend(quantity, palette) {
  const stops = Array.from({ length: 17 }, (_, i) => palette.cell[1 + Math.round((254 * i) / 16)]);
  const bar = h("span", { class: "pv-legend-bar" });
  bar.style.backgroundImage = `linear-gradient(90deg, ${stops.join(", ")})`;
  const ticks = h("span", { class: "pv-legend-ticks" });
  ticks.append(...quantity.ticks.map((tick) => h("span", {}, tick)));
  return h(
    "span",
    { class: "pv-legend", role: "img", "aria-label": `Colour scale: ${quantity.caption}` },
    h("span", { class: "pv-legend-caption" }, quantity.caption),
    h("span", { class: "pv-legend-scale" }, bar, ticks),
  );
}

/** What the marks in the grid mean; each is shown only where there are some. */
export class MarkLegend {
  constructor() {
    /** @param {string} name @param {string} sample @param {string} meaning */
    const mark = (name, sample, meaning) => {
      const swatch = h("span", { class: `pv-swatch pv-swatch-${name}` }, sample);
      return h("span", { class: `pv-legend-mark pv-legend-${name}` }, swatch, meaning);
    };
    this.marks = {
      resampled: mark("resampled", "▼", "resampled: heavy particles are copied, light ones end"),
      extinct: mark("extinct", "word", "left no descendant"),
      dead: mark("dead", "word", "weight 0"),
      ended: mark("ended", "∎", "text has ended"),
      goesOn: mark("goes-on", GOES_ON, "goes on the word before"),
      waits: mark("waits", WAITS, "part of a character, shown where it completes"),
    };
    this.el = h("p", { class: "pv-note pv-marks" }, ...Object.values(this.marks));
  }

  /** @param {RunRecord} record @param {Uint8Array} indices @param {string} layout */
  show(record, indices, layout) {
    const resampled = record.resampled.subarray(0, record.steps).includes(1);
    this.marks.resampled.hidden = !resampled;
    this.marks.extinct.hidden = !resampled || layout !== "slots";
    this.marks.dead.hidden = !indices.includes(DEAD);
    this.marks.ended.hidden = !record.ending.includes(ENDS);
    this.marks.goesOn.hidden = !record.words.some((word) => word.startsWith(GOES_ON));
    this.marks.waits.hidden = !record.words.includes(WAITS);
  }
}
