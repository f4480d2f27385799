/** @file The view of a training: what is on show, and one draw a frame. */

import { View, host } from "./contact.js";
import { h, write } from "./dom.js";
import { methodName } from "./methods.js";
import { Heading, Status } from "./panels.js";
import { BeforeAfter, RaceTable, StaleNote, TrainBar, trainingFacts } from "./train_panels.js";
import { BoundsPlot, EssPlot, LossPlot, ScatterPlot } from "./train_plots.js";

class TrainView extends View {
  /** @param {Place} place */
  constructor({ model, el, signal }) {
    super({ model, el, signal }, { updates: 0 });
    this.method = "";
    const press = (/** @type {string} */ act) => this._press(act);
    this.heading = new Heading();
    this.status = new Status();
    this.bar = new TrainBar(press, (folder) => this._ask({ folder }), signal);
    this.stale = new StaleNote(press, signal);
    this.race = new RaceTable((method) => this._choose(method), signal);
    this.plots = [new LossPlot(), new EssPlot(), new BoundsPlot(), new ScatterPlot()];
    this.texts = new BeforeAfter();
    this._build(el);
    this._listen();
    this._showStatus();
    this._showFolder();
    this.retheme();
    this._greet(this.status.lost, ["status", "curves"]);
  }

  /** @param {HTMLElement} el */
  _build(el) {
    const [loss, ess, bounds, scatter] = this.plots.map(({ el: figure }) => figure);
    this.notes = [bounds, scatter].map((figure) => {
      const note = h("p", { class: "pv-note" });
      figure.append(note);
      return note;
    });
    const plots = h("section", { class: "tl-plots", "aria-label": "Curves" }, bounds, scatter, loss, ess);
    this.body = h("div", { class: "tl-body" }, this.race.el, plots, this.texts.el);
    this.empty = h("p", { class: "pv-empty" });
    const { el: status, alert, lost } = this.status;
    this.bar.el.append(status, this.bar.saving);
    this.root = h("div", { class: "pv tl", tabindex: "-1" });
    this.root.append(this.heading.el, this.bar.el, this.stale.el, alert, lost, this.empty, this.body);
    // For tests.
    Object.assign(this.root, { _plots: this.plots });
    this._mount(el);
  }

  _listen() {
    this._on(["header", "curves", "looks"], () => this.schedule());
    this._on(["status"], () => this._showStatus());
    this._on(["folder"], () => this._showFolder());
  }

  /** @param {string} act */
  _press(act) {
    // A name that is still being typed counts.
    if (act === "save") this._ask({ folder: this.bar.name.value });
    super._press(act);
  }

  /** @param {string} method */
  _choose(method) {
    this.method = method;
    this.schedule();
  }

  _showFolder() {
    this.bar.name.value = this.model.get("folder");
  }

  _showStatus() {
    const status = this.model.get("status") || {};
    this.status.show(status);
    this.stale.show(status.stale || "");
    this.bar.show(status, Boolean(this.model.get("curves")?.racers?.length));
    this.empty.textContent =
      status.state === "idle"
        ? "Press Start. The model is loaded and exact samples are drawn first; curves follow."
        : "Getting ready …";
  }

  /** What the panels read. */
  _view() {
    const [header, curves, looks] = ["header", "curves", "looks"].map((name) => this.model.get(name) || {});
    const racers = curves.racers ?? [];
    const chosen = racers.find(({ method }) => method === this.method) ?? racers[0];
    const seen = looks.racers ?? [];
    return {
      header,
      racers,
      chosen,
      goal: curves.goal,
      logZ: curves.log_z,
      looks: seen,
      look: seen.find(({ method }) => method === chosen?.method),
      before: looks.before,
      note: looks.note ?? "",
      theme: this.theme,
    };
  }

  paint() {
    const view = this._view();
    const ready = Boolean(view.chosen);
    this.body.hidden = !ready;
    this.empty.hidden = ready;
    const { header } = view;
    this.heading.el.hidden = !header.target;
    if (header.target) this.heading.show(header.prompt, `φ = ${header.target}`, trainingFacts(header));
    if (ready) {
      this.race.show(view);
      for (const plot of this.plots) plot.draw(view);
      this._explain(view);
      this.texts.show(view);
      this.bar.save.disabled = false;
    }
    this.stats.updates = view.chosen?.done ?? 0;
  }

  /** What bounds and scatter are, in words. @param {any} view */
  _explain({ header, chosen, note }) {
    const { bound_particles: K, num_runs: runs, held_out: exact } = header;
    const only = chosen.proposal_only && K > 1 ? " This twist only proposes: nothing is resampled." : "";
    const meaning = K === 1 ? " With one particle the gap estimates KL(q‖σ) + KL(σ‖q)." : "";
    const bounds =
      `Lower ●: mean of ${runs} runs; upper ○: mean over ${exact} held-out exact samples; K = ${K}; ` +
      `shades: 95 % t-intervals.${meaning}${only}`;
    const free = chosen.proposal_only
      ? ` ${methodName(chosen.method)} leaves log ψ free by any function of the text before, so it need not line up.`
      : "";
    const bars = header.exact ? "." : "; bars: ± 1 s.e.";
    const scatter = `Nats, mean of each t removed. ψ*: ${note}${bars}${free}`;
    [bounds, scatter].forEach((text, i) => write(this.notes[i], text));
  }
}

export default host(TrainView);
