/** @file What is known once a run has ended: its factors, and its samples with their download. */

import { button, download, h, meter, number, percent, plural, table } from "./dom.js";
import { TextTable, readableText } from "./panels.js";
import { readPage } from "./record.js";

/** Rows of the table at most; the download has all. */
const MAX_ROWS = 200;

/**
 * @typedef {object} Sample
 * @property {string} text
 * @property {number} weight
 * @property {number} particles
 * @property {number} log_phi
 * @property {number} log_p0
 * @property {number | null} ended_at
 * @property {number} slot
 */

/** Each factor of phi: its mean log on the samples, and how much weight it ends. */
export class Factors {
  constructor() {
    this.body = h("tbody");
    /** @type {[string, Record<string, string>][]} */
    const titles = [
      ["factor φᵢ", { title: "" }],
      ["mean log φᵢ (nats)", { title: "Mean under the final weights, in nats: an estimate of the mean under σ" }],
      ["killed at the end", { title: "Share of the weight that reaches the end of a text, before φ enters it, on texts with φᵢ = 0" }],
      ["by it alone", { title: "The same, on texts that no other factor rules out" }],
    ];
    this.el = h(
      "section",
      { class: "pv-samples rp-factors", "aria-label": "Factors of φ" },
      h("h4", {}, "Factors of φ ", h("span", { class: "pv-note" }, "on the final texts of this run")),
      table(titles, this.body),
    );
  }

  show(factors) {
    this.el.hidden = factors.length === 0;
    const means = factors.map(({ mean_log_phi: mean }) => Number(mean));
    const largest = Math.max(...means.map(Math.abs).filter(Number.isFinite), 1e-9);
    this.body.replaceChildren(
      ...factors.map(({ name, killed, killed_alone: alone }, i) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, name),
          h("td", {}, meter(Math.abs(means[i]) / largest), number(means[i])),
          h("td", {}, meter(Number(killed), "rp-killed"), percent(Number(killed))),
          h("td", {}, percent(Number(alone))),
        ),
      ),
    );
  }
}

const COLUMNS = [
  { key: "weight", title: "weight", show: (/** @type {Sample} */ s) => percent(s.weight) },
  { key: "particles", title: "particles", show: (/** @type {Sample} */ s) => String(s.particles) },
  { key: "log_phi", title: "log φ (nats)", show: (/** @type {Sample} */ s) => number(s.log_phi) },
  { key: "log_p0", title: "log p₀ (nats)", show: (/** @type {Sample} */ s) => number(s.log_p0) },
  { key: "ended_at", title: "ended at step", show: (/** @type {Sample} */ s) => String(s.ended_at ?? "–") },
  { key: "text", title: "text", show: (/** @type {Sample} */ s) => readableText(s.text) || "∅" },
];

/** The weighted samples: sorted by any column, and downloaded whole. */
export class SampleTable extends TextTable {
  /** @param {(slot: number) => void} onPick @param {AbortSignal} signal */
  constructor(onPick, signal) {
    super(onPick, signal);
    this.signal = signal;
    /** @type {Sample[] | null} */
    this.samples = null;
    this.order = { key: "weight", down: true };
    this.heads = COLUMNS.map((column) => this._head(column));
    this.scroller.append(h("table", {}, h("thead", {}, h("tr", {}, ...this.heads)), this.body));
    const downloads = ["CSV", "JSON"].map((kind) =>
      button({ "aria-label": `Download all samples as ${kind}` }, () => this._download(kind), signal, kind),
    );
    this.downloads = h("span", { class: "rp-downloads" }, "download all ", ...downloads);
    const head = h("div", { class: "rp-samples-head" }, this.title, this.downloads);
    this.el = h("section", { class: "pv-samples rp-samples", "aria-label": "Samples" }, head, this.scroller);
  }

  /** @param {{key: string, title: string}} column */
  _head({ key, title }) {
    const sort = button({ class: "rp-sort" }, () => this._sortBy(key), this.signal, title);
    return h("th", { scope: "col", "data-key": key }, sort);
  }

  /** @param {string} key */
  _sortBy(key) {
    const again = this.order.key === key;
    this.order = { key, down: again ? !this.order.down : key !== "text" };
    this._fill();
  }

  /** @param {any} header @param {Sample[] | null} samples */
  show(header, samples) {
    this.header = header;
    this.samples = samples;
    this.scroller.hidden = this.downloads.hidden = !samples;
    this.el.classList.toggle("rp-no-end", !header.ends);
    if (samples) this._fill();
    else this.wait(header.num_steps);
  }

  /** All samples in the order asked for; those of equal rank by weight. */
  _sorted() {
    const { key, down } = this.order;
    const sign = down ? -1 : 1;
    const compare = (/** @type {any} */ a, /** @type {any} */ b) => {
      if (key === "text") return sign * (a.text < b.text ? -1 : a.text > b.text ? 1 : 0);
      // What did not end stands behind what did, and −∞ last of the finite.
      const [x, y] = [a[key] ?? Infinity, b[key] ?? Infinity];
      return x === y ? 0 : sign * (x < y ? -1 : 1);
    };
    return [...(this.samples ?? [])].sort((a, b) => compare(a, b) || b.weight - a.weight || a.slot - b.slot);
  }

  _fill() {
    const sorted = this._sorted();
    const { num_particles: K } = this.header;
    const some = sorted.length > MAX_ROWS ? `; the first ${MAX_ROWS} are listed` : "";
    this.count.textContent = `${plural(sorted.length, "distinct text")} of ${plural(K, "particle")}${some}`;
    for (const head of this.heads) {
      const on = head.dataset.key === this.order.key;
      head.setAttribute("aria-sort", on ? (this.order.down ? "descending" : "ascending") : "none");
    }
    this.fill(sorted.slice(0, MAX_ROWS), (sample) =>
      COLUMNS.map(({ key, show }) => h("td", { "data-key": key }, h("bdi", {}, show(sample)))),
    );
  }

  /** @param {string} kind */
  _download(kind) {
    const text = kind === "CSV" ? samplesAsCsv(this._sorted()) : samplesAsJson(this.header, this._sorted());
    const type = kind === "CSV" ? "text/csv" : "application/json";
    download(`samples_run_${this.header.run + 1}.${kind.toLowerCase()}`, type, text);
  }
}

/** What a download has of a sample; the rest only this page knows. */
const EXPORTED = ["text", "weight", "particles", "log_phi", "log_p0", "ended_at"];

/**
 * Every text between quotation marks, its own doubled (RFC 4180), and after an apostrophe where a
 * spreadsheet would take it for a formula.
 * @param {Sample[]} samples
 */
function samplesAsCsv(samples) {
  const inert = (/** @type {string} */ text) => (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text);
  const cell = (/** @type {any} */ value) =>
    typeof value === "string" ? `"${inert(value).replaceAll('"', '""')}"` : String(value ?? "");
  const rows = samples.map((sample) => EXPORTED.map((name) => cell(sample[name])).join(","));
  return `${[EXPORTED.join(","), ...rows].join("\r\n")}\r\n`;
}

/** @param {any} header @param {Sample[]} samples */
function samplesAsJson(header, samples) {
  const { prompt, target, run, num_particles, num_steps, runs } = header;
  const facts = { prompt, target, run, num_particles, num_steps, unit: "nats", log_z_estimate: runs[run] };
  // JSON knows no infinity: as in the page's own data it is the word.
  const words = (/** @type {string} */ _, /** @type {any} */ value) =>
    typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
  const listed = samples.map((sample) => Object.fromEntries(EXPORTED.map((name) => [name, sample[name]])));
  return `${JSON.stringify({ ...facts, samples: listed }, words, 1)}\n`;
}

/**
 * The final samples that come with a header; null before there are any.
 * @param {any} header @param {DataView | undefined} data
 * @returns {Sample[] | null}
 */
export function readSamples(header, data) {
  if (!data || !data.byteLength) return null;
  const { facts, columns } = readPage(data);
  if (facts.id !== header.id) return null;
  return facts.texts.map((/** @type {string} */ text, /** @type {number} */ i) => ({
    text,
    weight: columns.weight[i],
    particles: columns.copies[i],
    log_phi: columns.log_phi[i],
    log_p0: columns.log_p0[i],
    ended_at: columns.ended[i] || null,
    slot: columns.slot[i],
  }));
}
