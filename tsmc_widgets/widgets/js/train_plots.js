/** @file The plots of a training: loss, ESS, bounds on log Z, learned against optimal log psi. */

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
};

/** @param {string} method */
function learnedName(method) {
  return method.toUpperCase().replaceAll("+", " + ");
}

/** @param {string} method @param {Theme} theme */
function styleOf(method, theme) {
  const style = STYLES[method] ?? STYLES.ppo;
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
function drawMarker({ context, halo }, { colour, marker }, at, up, look = {}) {
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
function key(method, theme) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 40 14");
  svg.setAttribute("class", "tl-key");
  svg.setAttribute("aria-hidden", "true");
  const { colour, dash, marker } = styleOf(method, theme);
  const add = (/** @type {string} */ d, /** @type {Record<string, string>} */ more) => {
    const path = document.createElementNS(SVG, "path");
    const all = { d, stroke: css(colour), "stroke-width": "2", fill: "none", ...more };
    for (const [name, value] of Object.entries(all)) path.setAttribute(name, value);
    svg.append(path);
  };
  add("M0 7H40", { "stroke-dasharray": dash.join(" ") || "none" });
  for (const stroke of markerStrokes(marker, 4)) {
    const corners = stroke.map(([dx, dy]) => `${20 + dx} ${7 + dy}`).join("L");
    add(`M${corners}`, { fill: stroke.length > 2 ? css(colour) : "none" });
  }
  return svg;
}

/**
 * A line through points [x, y]; null breaks it.
 * @param {any} plot @param {number[][]} points @param {any} style @param {number} [width]
 */
function drawPath({ context, x, y }, points, { colour, dash }, width = 2) {
  context.strokeStyle = css(colour);
  context.lineWidth = width;
  context.lineJoin = "round";
  context.setLineDash(dash);
  /** @type {number[][]} */
  let part = [];
  for (const [at, value] of points) {
    if (value !== null && Number.isFinite(value)) part.push([x(at), y(value)]);
    else part = (line(context, part), []);
  }
  line(context, part);
  context.setLineDash([]);
}

/** @param {any} plot @param {number[][]} rows [x, low, high] @param {Rgb} colour @param {number} alpha */
function drawBand({ context, x, y }, rows, colour, alpha) {
  const known = rows.filter((row) => row.every((value) => value !== null));
  if (known.length === 0) return;
  context.fillStyle = css(colour, alpha);
  context.beginPath();
  for (const [at, , high] of known) context.lineTo(x(at), y(high));
  for (const [at, low] of known.toReversed()) context.lineTo(x(at), y(low));
  context.fill();
  if (known.length > 1) return;
  const [[at, low, high]] = known;
  context.fillRect(x(at) - 3, y(high), 6, y(low) - y(high));
}

/** @param {(number | null)[]} values @param {number} [margin] share of the range @returns {[number, number]} */
function rangeOf(values, margin = 0.06) {
  const known = /** @type {number[]} */ (values.filter((v) => v !== null && Number.isFinite(v)));
  if (known.length === 0) return [0, 1];
  let [low, high] = [Math.min(...known), Math.max(...known)];
  if (high - low < 1e-3) [low, high] = [low - 0.05, high + 0.05];
  const room = margin * (high - low);
  return [low - room, high + room];
}

/** @param {number} goal @returns {[number, string][]} */
function updateTicks(goal) {
  return [[0, "0"], [Math.round(goal / 2), String(Math.round(goal / 2))], [goal, `update ${goal}`]];
}

/** What must be known of a loss to read it: NVI's compares means, and is small from the start. */
const REMARKS = new Map([["ctl", " (up to a constant)"], ["nvi", " (need not fall)"]]);

/** Loss per update. With several methods each has a scale of its own. */
class LossPlot {
  constructor() {
    this.strip = new Strip("Loss", "loss");
    this.strip.el.title = "What each update makes smaller. Losses of different methods do not compare.";
  }

  /** @param {any} view */
  draw({ racers, chosen, goal, theme }) {
    const own = racers.length > 1;
    const ranges = racers.map((racer) => rangeOf(racer.loss.map(([, value]) => value)));
    const range = own ? [-0.05, 1.05] : ranges[0];
    const ticks = own ? [] : niceTicks(range[0], range[1], 3);
    const plot = this.strip.axes(theme, [0, goal], range, updateTicks(goal), ticks);
    racers.forEach((racer, i) => {
      const [low, high] = ranges[i];
      const scaled = racer.loss.map(([at, value]) => [at, own ? (value - low) / (high - low) : value]);
      drawPath(plot, scaled, styleOf(racer.method, theme), racer === chosen ? 2 : 1.5);
    });
    const last = chosen.loss.at(-1);
    const value = last ? `${learnedName(chosen.method)}: ${number(last[1], 3)} at update ${last[0]}` : "no update yet";
    const remark = last ? (REMARKS.get(chosen.method) ?? "") : "";
    this.strip.say(`${value}${remark}${own ? "; each on its own scale" : ""}`);
  }
}

/** Effective sample size of each batch. */
class EssPlot {
  constructor() {
    this.strip = new Strip("ESS of the batch", "batch-ess");
    this.strip.el.title =
      "Effective sample size of the texts that the twist's proposal writes, weighed for the target, " +
      "as a share of their number. 100 %: every text is worth the same.";
  }

  /** @param {any} view */
  draw({ racers, chosen, goal, theme, header }) {
    const ticks = /** @type {[number, string][]} */ ([[0, "0 %"], [0.5, "50 %"], [1, "100 %"]]);
    const plot = this.strip.axes(theme, [0, goal], [0, 1], updateTicks(goal), ticks);
    for (const racer of racers) {
      const style = styleOf(racer.method, theme);
      drawPath(plot, racer.ess, style, racer === chosen ? 2 : 1.5);
      if (racer.from_base) for (const [at, share] of racer.ess) drawMarker(plot, style, plot.x(at), plot.y(share), { r: 2.5 });
    }
    const last = chosen.ess.at(-1);
    const size = chosen.from_base ? header.num_texts : header.batch_size;
    const what = chosen.from_base ? `of ${size} of its own texts, every ${header.every} updates` : `of ${size} texts`;
    this.strip.say(last ? `${number(last[1] * size, 1)} ${what}` : "no update yet");
  }
}

/** Lower and upper bounds on log Z, with intervals, and log Z where it is known. */
class BoundsPlot {
  constructor() {
    this.strip = new Strip("Bounds on log Z", "bounds");
  }

  /** @param {any} view */
  draw({ racers, chosen, goal, theme, header, logZ }) {
    const shown = racers.length > 1 ? [...racers.filter((r) => r !== chosen), chosen] : racers;
    const values = shown.flatMap(({ bounds }) => bounds.flatMap((row) => [row[1], row[4]]));
    const edges = chosen.bounds.flatMap((row) => [row[2], row[3], row[5], row[6]]);
    const range = rangeOf([...values, ...edges, logZ?.[0] ?? null]);
    const plot = this.strip.axes(theme, [0, goal], range, updateTicks(goal), niceTicks(...range, 5));
    if (logZ) this._band(plot, logZ, goal, theme);
    for (const racer of shown) this._racer(plot, racer, theme, racer === chosen);
    this._name(plot, chosen, theme);
    if (logZ) level(plot, logZ[0], "log Z", theme.text);
    this.strip.say(this._words(chosen, logZ, header));
  }

  /** @param {any} chosen @param {number[]} logZ @param {any} header */
  _words({ method, bounds }, logZ, header) {
    const [first, last] = [bounds[0], bounds.at(-1)];
    const sure = header.exact ? "exact" : `± ${number(logZ?.[1])} s.e. (rejection)`;
    const known = logZ ? `; log Z = ${number(logZ[0])} ${sure}` : "";
    if (!last) return `not measured yet${known}`;
    const gap = `${number(last[7] ?? Infinity)} ± ${number(last[8] ?? NaN)} s.e. nats`;
    const from = bounds.length > 1 ? `${number(first[7] ?? Infinity)} → ` : "";
    return `${learnedName(method)}: gap ${from}${gap}${known}`;
  }

  /** The 95 % interval of log Z. @param {any} plot @param {number[]} logZ @param {number} goal @param {Theme} theme */
  _band(plot, [value, error], goal, theme) {
    const rows = [0, goal].map((at) => [at, value - 1.96 * error, value + 1.96 * error]);
    drawBand(plot, rows, theme.text, 0.14);
  }

  /** @param {any} plot @param {any} racer @param {Theme} theme @param {boolean} strong */
  _racer(plot, racer, theme, strong) {
    const style = styleOf(racer.method, theme);
    for (const side of strong ? [1, 4] : []) {
      const rows = racer.bounds.map((row) => [row[0], row[side + 1], row[side + 2]]);
      drawBand(plot, rows, style.colour, 0.22);
    }
    for (const side of [1, 4]) {
      const points = racer.bounds.map((row) => [row[0], row[side]]);
      drawPath(plot, points, style, strong ? 2.2 : 1.4);
      for (const [at, value] of points) {
        if (value !== null) drawMarker(plot, style, plot.x(at), plot.y(value), { hollow: side === 4, r: strong ? 3.5 : 2.5 });
      }
    }
  }

  /** Names beside the first points. @param {any} plot @param {any} racer @param {Theme} theme */
  _name(plot, racer, theme) {
    const first = racer.bounds[0];
    if (!first) return;
    const { context, x, y, halo } = plot;
    context.textAlign = "left";
    context.lineWidth = 4;
    context.strokeStyle = css(halo);
    context.fillStyle = css(styleOf(racer.method, theme).colour);
    for (const [name, value, down] of [["upper ○", first[4], -9], ["lower ●", first[1], 17]]) {
      if (value === null) continue;
      context.strokeText(name, x(0) + 8, y(value) + down);
      context.fillText(name, x(0) + 8, y(value) + down);
    }
  }
}

/** Learned against optimal log psi, with the mean of each step removed from both. */
class ScatterPlot {
  constructor() {
    this.strip = new Strip("Learned log ψ against the optimal one", "scatter");
  }

  /** @param {any} view */
  draw({ chosen, look, theme, note }) {
    const points = look?.points ?? [];
    const ends = points.flatMap(([, optimal, error, learned]) => [optimal - error, optimal + error, learned]);
    const [low, high] = rangeOf([...ends, -0.5, 0.5]);
    const ticks = niceTicks(low, high, 5);
    const plot = this.strip.axes(theme, [low, high], [low, high], ticks, ticks);
    const { context, x, y, width } = plot;
    context.strokeStyle = css(theme.muted);
    context.setLineDash([5, 4]);
    line(context, [[x(low), y(low)], [x(high), y(high)]]);
    context.setLineDash([]);
    context.fillStyle = css(theme.muted);
    context.textAlign = "left";
    context.fillText("↑ learned log ψ", LEFT + 6, TOP + 6);
    context.textAlign = "right";
    context.fillText("optimal log ψ* →", width - RIGHT - 4, y(low) - 6);
    const style = styleOf(chosen.method, theme);
    const few = points.length < 60;
    for (const [, optimal, error, learned] of points) {
      context.strokeStyle = css(style.colour, 0.55);
      context.lineWidth = 1;
      if (error > 0) line(context, [[x(optimal - error), y(learned)], [x(optimal + error), y(learned)]]);
      drawMarker(plot, style, x(optimal), y(learned), { r: few ? 3 : 2.5, alpha: few ? 0.9 : 0.6 });
    }
    this.strip.say(correlation(look, note));
  }
}

/** The correlation in words. @param {any} look @param {string} note */
function correlation(look, note) {
  if (!look?.points) return "not measured yet";
  const count = look.points.length;
  if (look.correlation === null) return `ψ is still constant; n = ${count}`;
  const said = `correlation ${number(look.correlation)}`;
  if (note.startsWith("exact")) return `${said} over all ${count} prefixes`;
  const [low, high] = look.interval;
  return low === null ? `${said}, n = ${count}` : `${said} (95 %: ${number(low)} to ${number(high)}), n = ${count}`;
}
