/** @file The view: its state, what moves it, and one draw a frame. */

class ParticleView {
  /** @param {{model: any, el: HTMLElement, signal: AbortSignal}} context */
  constructor({ model, el, signal }) {
    this.model = model;
    this.signal = signal;
    this.stats = { renders: 0, ms: 0, maxMs: 0, t: 0, steps: 0 };
    /** @type {any} */
    this.view = { record: null, t: 0, sort: "slot", quantity: "weight", selection: null };
    this.wanted = Infinity;
    this.overview = new Overview((step, slot) => this.select(step, slot), signal);
    this.grid = new TextGrid((slot) => this.select(this.view.t, slot), () => this.schedule(), signal);
    this.strips = new Strips((t) => this.transport.scrub(t, true), signal);
    this.samples = new Samples((slot) => this._selectFinal(slot), signal);
    this.heading = new Heading();
    this.status = new Status();
    this.transport = new Transport(
      {
        seek: (t) => this.seek(t),
        hold: (on) => this._ask({ hold: on }),
        more: () => this._ask({ hold: true, more: model.get("more") + 1 }),
        settled: () => this._ask({ step: this.view.t }),
      },
      signal,
    );
    this._build(el);
    this._listen();
    this.load();
    this._showStatus();
    greet(model, this.status.lost, ["change:status", "change:header"], signal);
  }

  _showStatus() {
    const status = this.model.get("status");
    this.status.show(status);
    // A run that was asked to wait ends its step first: the button need not wait for that.
    this.transport.setRunning(status?.state === "running" && !this.model.get("hold"));
  }

  /** @param {HTMLElement} el */
  _build(el) {
    this.colourMenu = h("select", { "aria-label": "Colour tokens by" });
    for (const [key, { label }] of Object.entries(QUANTITIES)) {
      this.colourMenu.append(h("option", { value: key }, label));
    }
    this.sortMenu = h("select", { "aria-label": "Sort rows by" });
    for (const key of ["slot", "weight", "lineage"]) {
      this.sortMenu.append(h("option", { value: key }, key));
    }
    this.legendPlace = h("span", { class: "pv-legend-place" });
    this.lineageNote = h("p", { class: "pv-note pv-lineage-note", role: "status" });
    const texts = h(
      "section",
      { class: "pv-texts", "aria-label": "Particles" },
      h(
        "div",
        { class: "pv-toolbar" },
        h("h4", {}, "Particles"),
        h("label", { class: "pv-field" }, "colour ", this.colourMenu),
        h("label", { class: "pv-field" }, "sort ", this.sortMenu),
        this.legendPlace,
      ),
      this.grid.el,
      this.lineageNote,
    );
    this.empty = h("p", { class: "pv-empty" }, "Waiting for the first step …");
    this.body = h("div", { class: "pv-body" }, this.overview.el, texts, this.strips.el, this.samples.el);
    const { el: status, alert, lost } = this.status;
    this.transport.el.append(status);
    this.root = h("div", { class: "pv", tabindex: "-1" });
    this.root.append(this.heading.el, this.transport.el, alert, lost, this.empty, this.body);
    // For tests and measurements: counts draws and times them.
    /** @type {any} */ (this.root)._stats = this.stats;
    el.append(this.root);
  }

  _listen() {
    const { model, signal, root } = this;
    const on = (/** @type {string} */ name, /** @type {() => void} */ act) => {
      model.on(name, act);
      signal.addEventListener("abort", () => model.off(name, act));
    };
    const load = () => this._later(() => this.load());
    on("change:header", load);
    on("change:data", load);
    on("change:status", () => this._showStatus());
    on("change:hold", () => this._showStatus());
    on("change:step", () => this._later(() => this.seek(model.get("step"))));
    this.colourMenu.addEventListener("change", () => this._recolour(), { signal });
    this.sortMenu.addEventListener("change", () => this._resort(), { signal });
    root.addEventListener("keydown", (event) => this._key(event), { signal });
    keepKeysAround(root, signal);
    const canvases = [...root.querySelectorAll("canvas")];
    watchSizes([root, this.grid.el, ...canvases], () => this.schedule(), signal);
    watchThemes(() => this._retheme(), signal);
    signal.addEventListener("abort", () => cancelAnimationFrame(this.frame ?? 0));
  }

  /** Both traits of an update are set before either is read. @param {() => void} act */
  _later(act) {
    queueMicrotask(() => this.signal.aborted || act());
  }

  /**
   * Tell Python; a view without a kernel goes on without it.
   * @param {Record<string, any>} values
   */
  _ask(values) {
    const changed = Object.entries(values).filter(([name, value]) => this.model.get(name) !== value);
    if (changed.length === 0) return;
    for (const [name, value] of changed) this.model.set(name, value);
    this.model.save_changes();
  }

  /** Read the record anew. The play head stays where it was put; at the frontier it follows it. */
  load() {
    const [header, data] = [this.model.get("header"), this.model.get("data")];
    if (!RunRecord.fits(header, data) || this.loaded === header) return;
    this.loaded = header;
    const { view } = this;
    const before = view.record;
    if (before && before.id !== header.run_id) view.selection = null;
    view.record = new RunRecord(header, data);
    if (!this.theme) this._readTheme();
    view.indices = colourIndices(view.record, QUANTITIES[view.quantity]);
    this._showDeadInLegend();
    this.grid.measure(view.record, this.theme);
    this.heading.show(header);
    this.samples.show(view.record);
    if (!this.transport.playing) view.t = Math.min(this.wanted, view.record.steps);
    view.t = Math.min(view.t, view.record.steps);
    this.schedule();
  }

  /** @param {number} t */
  seek(t) {
    const { record } = this.view;
    if (!record) return;
    this.view.t = clamp(t, 0, record.steps);
    this.wanted = this.view.t === record.steps ? Infinity : this.view.t;
    this._updateTransport();
    this.schedule();
  }

  /** @param {number} step @param {number} slot */
  select(step, slot) {
    const { view } = this;
    if (!view.record || step < 1) return;
    const again = view.selection && view.selection.step === step && view.selection.slot === slot;
    view.selection = again ? null : { step, slot, path: view.record.lineage(step, slot) };
    this.schedule();
    if (view.selection) this._revealSelection();
  }

  /** @param {number} slot */
  _selectFinal(slot) {
    this.transport.scrub(this.view.record.steps, true);
    this.view.selection = null;
    this.select(this.view.t, slot);
  }

  /** Slots at the shown step that the selected particle stands in: its own, or its descendants. */
  _related() {
    const { record, t, selection } = this.view;
    const related = new Uint8Array(record.K);
    if (!selection || t === 0) return related;
    if (t <= selection.step) related[selection.path[t - 1]] = 1;
    else {
      const { slots } = record.genealogy(t);
      const at = (selection.step - 1) * record.K;
      for (let k = 0; k < record.K; k++) related[k] = slots[at + k] === selection.slot ? 1 : 0;
    }
    return related;
  }

  _revealSelection() {
    const slot = this._related().indexOf(1);
    if (slot >= 0) this.grid.reveal(this.view, slot);
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const inGrid = event.target === this.grid.el;
    const moves = { ArrowUp: -1, ArrowDown: 1 };
    if (inGrid && event.key in moves) this._moveSelection(moves[event.key]);
    else if (event.key === "Escape" && this.view.selection) this.view.selection = null;
    else if (event.target === this.samples.scroller && event.key !== " ") return;
    else if (!this.transport.key(event)) return;
    event.preventDefault();
    event.stopPropagation();
    this.schedule();
  }

  /** @param {number} by */
  _moveSelection(by) {
    const { record, t, sort } = this.view;
    if (!record || t === 0) return;
    const order = record.order(t, sort);
    const at = order.indexOf(this._related().indexOf(1));
    this.view.selection = null;
    this.select(t, order[clamp(at + by, 0, record.K - 1)]);
  }

  _recolour() {
    const { view } = this;
    view.quantity = this.colourMenu.value;
    if (view.record) view.indices = colourIndices(view.record, QUANTITIES[view.quantity]);
    this._readTheme();
    this.schedule();
  }

  _resort() {
    this.view.sort = this.sortMenu.value;
    this.grid.el.scrollTop = 0;
    this.schedule();
  }

  _readTheme() {
    const quantity = QUANTITIES[this.view.quantity];
    this.theme = this.view.theme = readTheme(this.root);
    this.view.palette = makePalette(quantity, this.theme);
    this.legendPlace.replaceChildren(legend(quantity, this.view.palette));
    this._showDeadInLegend();
    this.root.style.setProperty("--pv-orange", css(this.theme.orange));
    this.root.style.setProperty("--pv-blue", css(this.theme.blue));
    this.root.style.setProperty("--pv-lineage", css(this.theme.lineage));
  }

  /** Few runs have dead particles: their mark is explained where there are some. */
  _showDeadInLegend() {
    const mark = /** @type {HTMLElement} */ (this.legendPlace.querySelector(".pv-legend-dead"));
    if (mark) mark.hidden = !this.view.indices?.includes(DEAD);
  }

  _retheme() {
    this._readTheme();
    if (this.view.record) this.grid.measure(this.view.record, this.theme);
    this.schedule();
  }

  _updateTransport() {
    const { record, t } = this.view;
    const { steps, T } = record;
    const ess = t > 0 ? `ESS ${number(record.ess[t - 1], 1)} of ${record.K}` : "";
    this.transport.update({ t, steps, T, complete: steps >= T, note: ess });
  }

  schedule() {
    if (this.frame || this.signal.aborted) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const { view, stats } = this;
    this.body.hidden = !view.record;
    this.empty.hidden = Boolean(view.record);
    if (!view.record) return;
    // A view that is not yet on the page has no font.
    if (!this.theme.font) this._retheme();
    const start = performance.now();
    view.related = this._related();
    // Canvases first: setting a font on one makes the browser restyle what the grid has changed.
    this.overview.draw(view);
    this.strips.draw(view);
    this.grid.draw(view);
    this._updateTransport();
    this._noteLineage();
    stats.ms = performance.now() - start;
    stats.maxMs = Math.max(stats.maxMs, stats.ms);
    stats.t = view.t;
    stats.steps = view.record.steps;
    stats.renders += 1;
  }

  /** The selected particle in a sentence. */
  _noteLineage() {
    const { record, t, selection, related } = this.view;
    let text = "Click a row to follow a particle through resampling.";
    if (selection && t > 0) {
      const who = `Particle ${selection.slot} of step ${selection.step}`;
      const living = related.reduce((sum, one) => sum + one, 0);
      if (t > selection.step) {
        text = `${who}: ${living} of the ${record.K} particles at step ${t} descend from it.`;
      } else {
        const { slots } = record.genealogy(t);
        let shared = 0;
        const at = selection.path[0];
        for (let k = 0; k < record.K; k++) shared += slots[k] === at ? 1 : 0;
        const moves = selection.path.filter((slot, s) => s > 0 && slot !== selection.path[s - 1]);
        const moved = moves.length ? `moved slot ${plural(moves.length, "time")}` : "never moved slot";
        text =
          `${who}: ${moved}; ` +
          `${shared} of ${record.K} particles at step ${t} share its first token. ` +
          "Underlined: shared.";
      }
    }
    if (this.lineageNote.textContent !== text) this.lineageNote.textContent = text;
  }
}

export default host(ParticleView);
