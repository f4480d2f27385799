/** @file What is known once a run has ended: its factors, and its samples with their download. */

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
class Factors {
  constructor() {
    this.body = h("tbody");
    const titles = [
      ["factor φᵢ", ""],
      ["mean log φᵢ (nats)", "Mean under the final weights, in nats: an estimate of the mean under σ"],
      ["killed at step T", "Share of the weight that reaches step T, before φ is weighed, on texts with φᵢ = 0"],
      ["by it alone", "The same, on texts that no other factor rules out"],
    ];
    const head = h("tr", {}, ...titles.map(([title, meaning]) => h("th", { scope: "col", title: meaning }, title)));
    this.el = h(
      "section",
      { class: "pv-samples rp-factors", "aria-label": "Factors of φ" },
      h("h4", {}, "Factors of φ ", h("span", { class: "pv-note" }, "on the final texts of this run")),
      h("table", {}, h("thead", {}, head), this.body),
    );
  }

  /** @param {any[]} factors */
  show(factors) {
    this.el.hidden = factors.length === 0;
    const means = factors.map(({ mean_log_phi: mean }) => Number(mean));
    const largest = Math.max(...means.map(Math.abs).filter(Number.isFinite), 1e-9);
    this.body.replaceChildren(
      ...factors.map((factor, i) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, factor.name),
          h("td", {}, bar(Math.abs(means[i]) / largest, "rp-mean"), number(means[i])),
          h("td", {}, bar(Number(factor.killed), "rp-killed"), share(Number(factor.killed))),
          h("td", {}, share(Number(factor.killed_alone))),
        ),
      ),
    );
  }
}

/** @param {number} value */
function share(value) {
  return Number.isNaN(value) ? "–" : percent(value);
}

/** @param {number} part in [0, 1] @param {string} kind */
function bar(part, kind) {
  const fill = h("span", { class: `rp-fill ${kind}` });
  fill.style.width = `${100 * clamp(part || 0, 0, 1)}%`;
  return h("span", { class: "rp-bar", "aria-hidden": "true" }, fill);
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
class SampleTable {
  /** @param {(slot: number) => void} onPick @param {AbortSignal} signal */
  constructor(onPick, signal) {
    this.signal = signal;
    /** @type {Sample[] | null} */
    this.samples = null;
    this.order = { key: "weight", down: true };
    this.count = h("span", { class: "pv-note" });
    this.body = h("tbody");
    this.heads = COLUMNS.map((column) => this._head(column));
    this.scroller = h(
      "div",
      { class: "pv-samples-scroller", tabindex: "0", role: "region", "aria-label": "Final samples" },
      h("table", {}, h("thead", {}, h("tr", {}, ...this.heads)), this.body),
    );
    this.downloads = h("span", { class: "rp-downloads" }, "download all ");
    for (const kind of ["CSV", "JSON"]) {
      const button = h("button", { type: "button", "aria-label": `Download all samples as ${kind}` }, kind);
      button.addEventListener("click", () => this._download(kind), { signal });
      this.downloads.append(button);
    }
    this.el = h(
      "section",
      { class: "pv-samples rp-samples", "aria-label": "Samples" },
      h("div", { class: "rp-samples-head" }, h("h4", {}, "Final samples ", this.count), this.downloads),
      this.scroller,
    );
    this.body.addEventListener(
      "click",
      (/** @type {any} */ event) => {
        const row = event.target.closest("tr");
        if (row) onPick(Number(row.dataset.slot));
      },
      { signal },
    );
  }

  /** @param {{key: string, title: string}} column */
  _head({ key, title }) {
    const button = h("button", { type: "button", class: "rp-sort" }, title);
    button.addEventListener("click", () => this._sortBy(key), { signal: this.signal });
    return h("th", { scope: "col", "data-key": key }, button);
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
    if (samples) return this._fill();
    this.count.textContent = `after step ${header.num_steps}, when log φ has been weighed in`;
    this.body.replaceChildren();
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
    const rows = sorted.slice(0, MAX_ROWS).map((sample) =>
      h(
        "tr",
        { "data-slot": String(sample.slot), class: sample.weight === 0 ? "pv-dead-row" : "" },
        ...COLUMNS.map(({ key, show }) => h("td", { "data-key": key }, show(sample))),
      ),
    );
    this.body.replaceChildren(...rows);
  }

  /** @param {string} kind */
  _download(kind) {
    const text = kind === "CSV" ? samplesAsCsv(this._sorted()) : samplesAsJson(this.header, this._sorted());
    const type = kind === "CSV" ? "text/csv" : "application/json";
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = h("a", { href: url, download: `samples_run_${this.header.run + 1}.${kind.toLowerCase()}` });
    link.click();
    // The browser has taken hold of it once it has turned to the click.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }
}

/** @param {Sample} sample without what only this page knows */
function exported({ text, weight, particles, log_phi, log_p0, ended_at }) {
  return { text, weight, particles, log_phi, log_p0, ended_at };
}

/** Every text between quotation marks, its own doubled (RFC 4180). @param {Sample[]} samples */
function samplesAsCsv(samples) {
  const names = ["text", "weight", "particles", "log_phi", "log_p0", "ended_at"];
  const cell = (/** @type {any} */ value) =>
    typeof value === "string" ? `"${value.replaceAll('"', '""')}"` : String(value ?? "");
  const rows = samples.map((sample) => Object.values(exported(sample)).map(cell).join(","));
  return `${[names.join(","), ...rows].join("\r\n")}\r\n`;
}

/** @param {any} header @param {Sample[]} samples */
function samplesAsJson(header, samples) {
  const { prompt, target, run, num_particles, num_steps, runs } = header;
  const facts = { prompt, target, run, num_particles, num_steps, unit: "nats", log_z_estimate: runs[run] };
  // JSON knows no infinity: as in the page's own data it is the word.
  const words = (/** @type {string} */ _, /** @type {any} */ value) =>
    typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
  return `${JSON.stringify({ ...facts, samples: samples.map(exported) }, words, 1)}\n`;
}
