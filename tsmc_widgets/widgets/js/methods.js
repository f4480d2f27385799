/** @file How each method is named and drawn, in every view. */

import { css, svg } from "./dom.js";

/**
 * How each method is drawn: Okabe-Ito colours for light and dark themes, a dash and a marker, so
 * that none is told by its colour alone.
 * @type {Record<string, {light: Rgb, dark: Rgb, dash: number[], marker: string}>}
 */
const STYLES = {
  ctl: { light: [0, 114, 178], dark: [86, 160, 233], dash: [], marker: "circle" },
  "ctl+dpg": { light: [95, 70, 175], dark: [185, 165, 255], dash: [14, 3, 3, 3], marker: "bow" },
  rl: { light: [213, 94, 0], dark: [240, 125, 40], dash: [8, 4], marker: "square" },
  sixo: { light: [0, 140, 100], dark: [0, 190, 140], dash: [2, 3], marker: "up" },
  fudge: { light: [175, 85, 140], dark: [230, 150, 195], dash: [9, 3, 2, 3], marker: "diamond" },
  nvi: { light: [200, 130, 0], dark: [240, 185, 60], dash: [4, 4], marker: "down" },
  cd: { light: [40, 150, 200], dark: [140, 210, 245], dash: [12, 4], marker: "plus" },
  dpg: { light: [130, 120, 0], dark: [240, 228, 66], dash: [9, 3, 2, 3, 2, 3], marker: "cross" },
  ppo: { light: [70, 70, 70], dark: [205, 205, 205], dash: [1, 3], marker: "bar" },
  none: { light: [95, 95, 95], dark: [190, 190, 190], dash: [3, 3], marker: "circle" },
  "look-ahead": { light: [213, 94, 0], dark: [240, 125, 40], dash: [10, 4], marker: "diamond" },
  shipped: { light: [0, 114, 178], dark: [86, 160, 233], dash: [], marker: "square" },
  optimal: { light: [0, 140, 100], dark: [0, 190, 140], dash: [6, 3, 2, 3], marker: "up" },
  rl_sigma: { light: [150, 60, 0], dark: [250, 170, 110], dash: [8, 3, 2, 3], marker: "square" },
};

/** Names of methods that are not losses; those of text methods are their own. */
const NAMES = {
  none: "none: ψ = 1",
  optimal: "optimal ψ*",
  rl_sigma: "RL-σ",
  shipped: "shipped",
  "look-ahead": "look-ahead",
};

/** Whether a method has bounds and divergences to draw, as all but those of texts alone. @param {string} method */
export function isDrawn(method) {
  return !["rejection", "best-of-n", "beam"].includes(method);
}

/** @param {string} method */
export function methodName(method) {
  return NAMES[method] ?? (method in STYLES ? method.toUpperCase().replaceAll("+", " + ") : method);
}

/** Of the others, such as saved twists, the name picks one. @param {string} method @param {Theme} theme */
export function styleOf(method, theme) {
  const all = Object.values(STYLES);
  const sum = [...method].reduce((total, letter) => total + letter.charCodeAt(0), 0);
  const style = STYLES[method] ?? all[sum % all.length];
  return { colour: theme.dark ? style.dark : style.light, dash: style.dash, marker: style.marker };
}

/**
 * Corners of a marker about the origin; lists of one stroke each.
 * @param {string} kind @param {number} r
 * @returns {number[][][]}
 */
function markerStrokes(kind, r) {
  const d = r * 0.9;
  const shapes = /** @type {Record<string, number[][][]>} */ ({
    square: [[[-d, -d], [d, -d], [d, d], [-d, d], [-d, -d]]],
    up: [[[0, -r - 1], [r, d], [-r, d], [0, -r - 1]]],
    down: [[[0, r + 1], [r, -d], [-r, -d], [0, r + 1]]],
    diamond: [[[0, -r - 1], [r + 1, 0], [0, r + 1], [-r - 1, 0], [0, -r - 1]]],
    plus: [[[-r - 1, 0], [r + 1, 0]], [[0, -r - 1], [0, r + 1]]],
    cross: [[[-r, -r], [r, r]], [[-r, r], [r, -r]]],
    bow: [[[-d, -d], [d, d], [d, -d], [-d, d], [-d, -d]]],
    bar: [[[-r - 1, 0], [r + 1, 0]]],
  });
  const circle = Array.from({ length: 17 }, (_, i) => [
    r * Math.cos((i * Math.PI) / 8),
    r * Math.sin((i * Math.PI) / 8),
  ]);
  return shapes[kind] ?? [circle];
}

/**
 * @param {any} plot @param {any} style @param {number} at @param {number} up
 * @param {{r?: number, hollow?: boolean, alpha?: number}} [look]
 */
export function drawMarker({ context, halo }, { colour, marker }, at, up, look = {}) {
  const { r = 3.5, hollow = false, alpha = 1 } = look;
  context.setLineDash([]);
  context.lineWidth = 1.6;
  context.strokeStyle = css(colour, alpha);
  context.fillStyle = hollow ? css(halo) : css(colour, alpha);
  for (const stroke of markerStrokes(marker, r)) {
    context.beginPath();
    for (const [dx, dy] of stroke) context.lineTo(at + dx, up + dy);
    if (stroke.length > 2) context.fill();
    context.stroke();
  }
}

/** A short line as a method is drawn. @param {string} method @param {Theme} theme */
export function key(method, theme) {
  const { colour, dash, marker } = styleOf(method, theme);
  const stroke = { stroke: css(colour), "stroke-width": "2" };
  const corners = (/** @type {number[][]} */ points) => points.map(([dx, dy]) => `${20 + dx} ${7 + dy}`).join("L");
  const marks = markerStrokes(marker, 4).map((points) => (
    { d: `M${corners(points)}`, ...stroke, fill: points.length > 2 ? css(colour) : "none" }
  ));
  const line = { d: "M0 7H40", ...stroke, fill: "none", "stroke-dasharray": dash.join(" ") || "none" };
  const drawn = svg("0 0 40 14", [line, ...marks]);
  drawn.setAttribute("class", "tl-key");
  return drawn;
}
