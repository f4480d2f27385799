/** @file The panels of a run: their play head, what moves it, and one draw a frame. */

/** How long nothing must move until the panels that are out of sight are drawn too. */
const PANEL_REST_MS = 140;
/** While the play head moves, values in words change no faster than they can be read. */
const WORDS_MS = 90;
const PANEL_PAGES = Array.from({ length: 16 }, (_, i) => `page${i}`);

class RunPanels extends View {
  /** @param {Place} place */
  constructor({ model, el, signal }) {
    super({ model, el, signal }, { t: 0, steps: 0, run: 0 });
    this.t = 0;
    this.wanted = Infinity;
    this.spoke = -Infinity;
    /** @type {any} */
    this.record = null;
    this.status = new Status();
    this.group = new Group(model, (news) => this._follow(news), signal);
    this.runs = new RunMenu((run) => this._pickRun(run), signal);
    this.ess = MEASURES.ess();
    this.ancestors = MEASURES.ancestors();
    this.weights = MEASURES.weights();
    this.plots = { logZ: new LogZPlot(), lorenz: new LorenzPlot(), spread: new SpreadPlot() };
    /** @type {Map<Strip, (view: any) => void>} */
    this.drawn = new Map([
      [this.ess, (/** @type {any} */ view) => drawEss(this.ess, view)],
      [this.ancestors, (/** @type {any} */ view) => drawAncestors(this.ancestors, view)],
      [this.weights, (/** @type {any} */ view) => drawWeights(this.weights, view)],
      ...Object.values(this.plots).map((plot) => /** @type {any} */ ([plot.strip, (/** @type {any} */ view) => plot.draw(view)])),
    ]);
    /** Elements of the strips that can not be seen. @type {Set<Element>} */
    this.unseen = new Set();
    this.factors = new Factors();
    this.samples = new SampleTable((slot) => this.group.tell({ slot, of: runsOf(this.record) }), signal);
    this._build(el);
    this._listen();
    this.load();
    if (!model.get("alone")) greet(model, this.status.lost, ["change:header"], signal);
  }

  /** @param {HTMLElement} el */
  _build(el) {
    this.range = h("input", { type: "range", min: "0", step: "1", "aria-label": "Step shown" });
    this.readout = h("output", { class: "pv-readout" });
    this.bar = h("div", { class: "rp-bar-row", role: "group", "aria-label": "Step and run" });
    this.bar.append(this.readout, h("span", { class: "rp-range" }, this.range), this.runs.el);
    const { logZ, lorenz, spread } = this.plots;
    /** @type {(title: string, note: string, ...strips: Strip[]) => any} */
    const row = (title, note, ...strips) =>
      h(
        "section",
        { class: "rp-row", "aria-label": title },
        h("h4", { class: "rp-title" }, title, h("span", { class: "pv-note" }, note)),
        h("div", { class: "rp-strips" }, ...strips.map((strip) => strip.el)),
      );
    this.now = h("span", {});
    const steps = row("Over the steps", "", logZ.strip, this.ess, this.ancestors);
    const here = row("", "", spread.strip, this.weights, lorenz.strip);
    here.setAttribute("aria-label", "At the step shown");
    here.querySelector(".rp-title").prepend(this.now);
    this.body = h("div", { class: "rp-body" }, steps, here, this.factors.el, this.samples.el);
    this.empty = h("p", { class: "pv-empty" }, "Waiting for the first step …");
    this.root = h("div", { class: "pv rp", tabindex: "-1" });
    this.root.append(this.bar, this.status.lost, this.empty, this.body);
    // For tests.
    Object.assign(this.root, { _panels: this });
    this._mount(el);
  }

  _listen() {
    const { model, signal, root } = this;
    const load = () => this._later(() => this.load());
    for (const name of ["header", "samples", ...PANEL_PAGES]) this._on(name, load);
    this._on("step", () => this._later(() => this.seek(model.get("step"))));
    const scrub = (/** @type {number} */ t) => this.seek(t, { settle: true });
    letScrub([this.plots.logZ.strip, this.ess, this.ancestors], () => this.record, scrub, signal);
    this.range.addEventListener("input", () => this.seek(Number(this.range.value)), { signal });
    this.range.addEventListener("change", () => this._ask({ step: this.t }), { signal });
    root.addEventListener("keydown", (event) => this._key(event), { signal });
    const sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.unseen.delete(target);
        else this.unseen.add(target);
      }
      this.redraw();
    });
    for (const strip of this.drawn.keys()) sight.observe(strip.el);
    signal.addEventListener("abort", () => sight.disconnect());
    signal.addEventListener("abort", () => clearTimeout(this.rest));
  }

  /** Read the record anew; the play head stays, or follows the frontier if it is there. */
  load() {
    const header = this.model.get("header");
    const pages = PANEL_PAGES.map((name) => this.model.get(name));
    const record = PanelRecord.of(this.record, header, pages);
    if (!record) return;
    const data = this.model.get("samples");
    if (this.loaded === header && this.sampled === data) return;
    [this.loaded, this.sampled] = [header, data];
    this.record = record;
    this.runs.show(header, this.model.get("offered"));
    this.factors.show(header.factors);
    this.samples.show(header, readSamples(header, data));
    this.t = Math.min(this.wanted, record.steps);
    this.redraw();
  }

  /** @param {number} t @param {{told?: boolean, settle?: boolean}} [how] told by another view of the group */
  seek(t, { told = false, settle = false } = {}) {
    if (!this.record) return;
    this.t = clamp(t, 0, this.record.steps);
    this.wanted = this.t === this.record.steps ? Infinity : this.t;
    this.schedule();
    if (!told) this.group.tell({ t: this.t });
    if (settle) this._ask({ step: this.t });
  }

  /** @param {any} news */
  _follow({ t, run }) {
    if (t !== undefined) this.seek(t, { told: true });
    if (run !== undefined && this.runs.offers(run)) this._ask({ run });
  }

  /** @param {number} run */
  _pickRun(run) {
    this._ask({ run });
    this.group.tell({ run });
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const target = /** @type {Element} */ (event.target);
    const busy = target.tagName === "SELECT" || target === this.samples.scroller;
    if (!this.record || busy || event.altKey || event.ctrlKey || event.metaKey) return;
    const places = { ArrowLeft: this.t - 1, ArrowRight: this.t + 1, Home: 0, End: this.record.steps };
    if (event.key in places) this.seek(places[event.key], { settle: true });
    else if (event.key === " " && target.tagName !== "BUTTON") this.group.tell({ play: true });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Panels out of sight as well. */
  redraw() {
    this.all = true;
    this.schedule();
  }

  ready() {
    const { record } = this;
    this.body.hidden = this.bar.hidden = !record;
    this.empty.hidden = Boolean(record);
    return Boolean(record);
  }

  /** @param {number} start */
  paint(start) {
    const { record, t } = this;
    const view = { record, t, theme: this.theme, genealogy: { survivors: record.survivors(t) } };
    const silent = !this.all && start - this.spoke < WORDS_MS;
    for (const [strip, act] of this.drawn) {
      strip.silent = silent;
      if (this.all || !this.unseen.has(strip.el)) act(view);
    }
    if (!silent) this.spoke = start;
    clearTimeout(this.rest);
    // What is out of sight and in words must be true when somebody reads it.
    if (!this.all) this.rest = setTimeout(() => this.redraw(), PANEL_REST_MS);
    this.all = false;
    this._say();
    Object.assign(this.stats, { t, steps: record.steps, run: record.header.run });
  }

  _say() {
    const { t, record } = this;
    const place = `step ${t} of ${record.T}`;
    if (this.placed === place) return;
    this.placed = place;
    this.readout.textContent = place;
    this.now.textContent = t === 0 ? "Before step 1" : `After step ${t}`;
    this.range.max = String(record.T);
    this.range.value = String(t);
    this.range.setAttribute("aria-valuetext", t === 0 ? `prompt, before step 1 of ${record.T}` : place);
  }
}

export default host(RunPanels);
