/** @file The view: its state, what moves it, and one draw a frame. */

import { host, runsOf } from "./contact.js";
import { clamp, css, h, number, plural, write } from "./dom.js";
import { shareAt } from "./plot.js";
import { arrange, family, genealogy, lineage, lineageInWords, stepInWords } from "./genealogy.js";
import { explain } from "./glossary.js";
import { TokenGrid } from "./grid.js";
import { Inspector } from "./inspector.js";
import { AncestorsStrip, EssStrip, LossStrip, RunLogZStrip, WeightsStrip, errorInWords, letScrub } from "./measures.js";
import { Heading, Menu, Samples } from "./panels.js";
import { Population } from "./population.js";
import { eachStrand } from "./ribbons.js";
import { REST_MS, RunView } from "./run_view.js";
import { MarkLegend, QUANTITIES, colourIndices, legend, makePalette } from "./scales.js";
import { Share } from "./share.js";
import { Tour } from "./tour.js";
import { Transport } from "./transport.js";

const NOTHING_CHOSEN = { selection: null, marks: null, hover: null, focus: null };
const LAYOUTS = { slots: "slots and their copies", texts: "whole texts" };
const SORTS = { lineage: "lineage", weight: "weight", loss: "loss at this step", slot: "slot" };

class ParticleView extends RunView {
  /** @param {Place} place */
  constructor({ model, el, signal }) {
    super({ model, el, signal }, { rests: 0 });
    const choices = { sort: "lineage", layout: "slots", quantity: "weight" };
    Object.assign(this.view, { ...choices, related: null, ...NOTHING_CHOSEN });
    this.population = new Population((step, slot) => this.select(step, slot), signal);
    this.grid = new TokenGrid(
      { pick: (s, row) => this._pick(s, row), hover: (s, row) => this._hover(s, row), redraw: () => this.schedule() },
      signal,
    );
    this.loss = new LossStrip();
    /** On one axis with the population. */
    this.overSteps = [new EssStrip(), this.loss, new AncestorsStrip()];
    this.strips = [new RunLogZStrip(), new WeightsStrip()];
    const scrubbed = [this.overSteps[0], this.overSteps[2], this.strips[0]];
    letScrub(scrubbed, () => this.view.record, (t) => this.transport.scrub(t, true), signal);
    this.loss.canvas.addEventListener("click", (event) => this._blame(event), { signal });
    this.samples = new Samples((slot) => this._selectFinal(slot), signal);
    this.inspector = new Inspector();
    this.heading = new Heading(this.runs);
    this.legend = new MarkLegend();
    this.transport = new Transport(
      {
        seek: (t) => this.seek(t),
        hold: (on) => this._ask({ hold: on }),
        more: () => this._ask({ hold: true, more: model.get("more") + 1 }),
        settled: () => this.settle(),
      },
      signal,
    );
    const askPage = () => this._ask({ pages: (this.model.get("pages") ?? 0) + 1 });
    this.share = new Share(this.model, () => this._figure(), askPage, signal);
    // A page without Python has the lessons as its runs, where it has them.
    const course = Boolean(model.get("course"));
    const next = () => this._ask(course ? { run: model.get("lesson").number } : { lessons_done: (model.get("lessons_done") ?? 0) + 1 });
    const hasNext = course || !model.get("alone");
    const play = (/** @type {number} */ t, /** @type {() => void} */ then) => this.transport.play(t, then);
    const seek = (/** @type {number} */ t) => this.seek(t);
    this.tour = new Tour({ seek, play, next, hasNext, look: (spot) => this._look(spot) }, signal);
    this._build(el);
    this.root.classList.toggle("pv-course", course);
    this._listen();
    this._showStatus();
  }

  _showStatus() {
    const status = this.model.get("status");
    this.status.show(status);
    // A run that was asked to wait ends its step first: the button need not wait for that.
    this.transport.setRunning(status?.state === "running" && !this.model.get("hold"));
  }

  /** @param {HTMLElement} el */
  _build(el) {
    /** @type {(name: string, label: string, choices: [string, string][], act: () => void) => Menu} */
    const menu = (name, label, choices, act) => {
      const made = new Menu(name, act, this.signal, { "aria-label": label });
      made.offer(choices);
      return made;
    };
    const quantities = Object.entries(QUANTITIES).map(([key, { label }]) => [key, label]);
    this.layoutMenu = menu("show", "Rows show", Object.entries(LAYOUTS), () => this._relay());
    this.sortMenu = menu("sort by", "Sort rows by", Object.entries(SORTS), () => this._resort());
    this.colourMenu = menu("colour", "Colour tokens by", /** @type {any} */ (quantities), () => this._recolour());
    this.legendPlace = h("span", { class: "pv-legend-place" });
    this.lineageNote = h("p", { class: "pv-note pv-lineage-note", role: "status" });
    const menus = [this.layoutMenu, this.sortMenu, this.colourMenu].map(({ el: menuEl }) => menuEl);
    const toolbar = h("div", { class: "pv-toolbar" }, ...menus, this.legendPlace);
    const over = h("section", { class: "pv-over", "aria-label": "Population" });
    over.append(this.transport.slider.rail, this.population.el, ...this.overSteps.map((strip) => strip.el));
    const texts = h("section", { class: "pv-texts", "aria-label": "Particles" });
    texts.append(this.grid.el, this.legend.el, this.lineageNote);
    this.measures = h("section", { class: "pv-strips", "aria-label": "Measures of the run" });
    this.measures.append(...this.strips.map((strip) => strip.el));
    this.body = h("div", { class: "pv-body" }, over, this.measures, toolbar, texts, this.inspector.el, this.samples.el);
    const { el: status, alert, lost } = this.status;
    this.verdict = h("p", { class: "pv-verdict", role: "status" });
    this.numbers = h("p", { class: "pv-numbers" });
    this.transport.el.append(status, this.share.result, this.share.el);
    this.top = h("div", { class: "pv-top" }, this.verdict, this.numbers, this.transport.el);
    this.root = h("div", { class: "pv", tabindex: "-1" });
    this.story = h("p", { class: "pv-story" });
    this.root.append(this.heading.el, this.tour.el, this.top, this.story, alert, lost, this.share.code, this.empty, this.body);
    // For tests.
    Object.assign(this.root, { _view: this.view, _grid: this.grid, _ribbons: eachStrand });
    this._mount(el, this.grid.el);
    this._showStrips();
  }

  /** Where panels beside the view draw the measures and list the samples, they are not here. */
  _showStrips() {
    const on = this.model.get("strips") !== false;
    for (const part of [this.measures, this.samples.el]) part.hidden = !on;
    this.root.classList.toggle("pv-bare", !on);
    this.withStrips = on;
    if (on && this.view.record) this.samples.show(this.view.record);
    this.schedule();
  }

  _listen() {
    this._on(["status", "hold"], () => this._showStatus());
    this._on(["strips"], () => this._showStrips());
    this._on(["beside"], () => this._lay());
    this._on(["share"], () => this.share.offer());
    const lesson = () => this.tour.show(this.model.get("lesson"));
    this._on(["lesson"], lesson);
    this._lay();
    this.listen([], ["status", "header"]);
    lesson();
  }

  /** Another run's measures, drawn dashed over this one's. */
  _lay() {
    const beside = this.model.get("beside") ?? {};
    this.view.beside = beside.ess ? beside : null;
    this.schedule();
  }

  load() {
    const { view } = this;
    const { record } = view;
    view.siblingGroups = null;
    if (this.isOther) Object.assign(view, NOTHING_CHOSEN);
    if (!this.theme) this.readTheme();
    this._colour();
    this.grid.measure(view);
    const { prompt, target, facts } = record.header;
    const sizes = [`K = ${plural(record.K, "particle")}`, `T = ${plural(record.T, "token")}`];
    this.heading.show(prompt, target, [...sizes, ...facts]);
    if (this.withStrips) this.samples.show(record);
    if (!this.transport.playing) view.t = Math.min(this.wanted, record.steps);
    view.t = Math.min(view.t, record.steps);
    this.tour.meet(record);
    this.schedule();
  }

  /** Light on one part, the others in the shade; all alike for "". @param {string} spot */
  _look(spot) {
    this.root.classList.toggle("pv-asking", this.tour.asking);
    const [, loss] = this.overSteps;
    const spots = { ess: this.overSteps[0].el, loss: loss.el, ancestors: this.overSteps[2].el, population: this.population.el, texts: this.grid.el };
    for (const [name, el] of Object.entries(spots)) {
      el.classList.toggle("pv-spot", name === spot);
      el.classList.toggle("pv-shade", spot !== "" && name !== spot);
    }
    if (spot) spots[spot].scrollIntoView({ block: "nearest" });
  }

  _colour() {
    const { view } = this;
    if (!view.record) return;
    view.indices = colourIndices(view.record, QUANTITIES[view.quantity]);
    this.legend.show(view.record, view.indices, view.layout);
  }

  /** @param {number} t @param {boolean} [told] */
  seek(t, told = false) {
    super.seek(t, told);
    if (this.view.record) this._updateTransport();
  }

  /** @param {News} news */
  follow({ slot, of, play, ...moved }) {
    super.follow(moved);
    if (of !== undefined && of === runsOf(this.view.record)) this._selectFinal(slot);
    if (play) this.transport.toggle();
  }

  /** @param {number} step @param {number} slot */
  select(step, slot) {
    const { view } = this;
    if (!view.record || step < 1) return;
    const again = view.selection && view.selection.step === step && view.selection.slot === slot;
    view.selection = again ? null : { step, slot, path: lineage(view.record, step, slot) };
    view.focus = again ? null : { s: step - 1, slot };
    this.schedule();
    if (view.selection) this._revealSelection();
  }

  /** A cell was clicked. @param {number} s @param {number} row */
  _pick(s, row) {
    if (row < 0 || this.view.t === 0) return;
    this._arrange();
    this.select(s + 1, this.grid.slotAt(this.view, s, row));
  }

  /** @param {number} s @param {number} row */
  _hover(s, row) {
    const { view } = this;
    const old = view.hover;
    if (row < 0 || s < 0 || !view.order) view.hover = null;
    else if (old?.s !== s || old?.row !== row) view.hover = { s, row, slot: this.grid.slotAt(view, s, row) };
    if (view.hover !== old) this.schedule();
  }

  /** A bar of what a step lost was clicked: its step, worst first, and the worst under the lens. @param {MouseEvent} event */
  _blame(event) {
    const { record } = this.view;
    if (!record) return;
    const s = Math.floor(shareAt(this.loss.canvas, event) * record.T);
    if (s < 0 || s >= record.steps) return;
    this.transport.scrub(s + 1, true);
    this.sortMenu.value = "loss";
    this._resort();
    this.view.selection = null;
    this.select(s + 1, record.loss(s).worst);
  }

  /** @param {number} slot */
  _selectFinal(slot) {
    this.transport.scrub(this.view.record.steps, true);
    this.view.selection = null;
    this.select(this.view.t, slot);
  }

  /** Slots at the shown step that the selected particle stands in: its own, or its descendants. */
  _related() {
    const { record, t, marks } = this.view;
    return marks && t > 0 ? marks.subarray((t - 1) * record.K, t * record.K) : null;
  }

  _revealSelection() {
    this._arrange();
    const slot = this._related()?.indexOf(1) ?? -1;
    if (slot >= 0) this.grid.reveal(this.view, this.view.order.rows.indexOf(slot));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const inGrid = event.target === this.grid.el;
    const moves = { ArrowUp: -1, ArrowDown: 1 };
    if (inGrid && event.key in moves) this._moveSelection(moves[event.key]);
    else if (event.key === "Escape" && this.view.selection) this.view.selection = this.view.focus = null;
    else if (event.target === this.samples.scroller && event.key !== " ") return false;
    else if (!this.transport.key(event)) return false;
    this.schedule();
    return true;
  }

  /** @param {number} by */
  _moveSelection(by) {
    const { view } = this;
    if (!view.record || view.t === 0) return;
    this._arrange();
    const rows = view.order.rows;
    const at = rows.indexOf(this._related()?.indexOf(1) ?? -1);
    view.selection = null;
    this.select(view.t, rows[clamp(at + by, 0, view.record.K - 1)]);
  }

  _recolour() {
    this.view.quantity = this.colourMenu.value;
    this.readTheme();
    this._colour();
    this.schedule();
  }

  _resort() {
    this.view.sort = this.sortMenu.value;
    this.grid.el.scrollTop = 0;
    this.schedule();
  }

  _relay() {
    this.view.layout = this.layoutMenu.value;
    if (this.view.record) this.grid.measure(this.view);
    this._colour();
    this.schedule();
  }

  readTheme() {
    super.readTheme();
    const quantity = QUANTITIES[this.view.quantity];
    this.view.theme = this.theme;
    this.view.palette = makePalette(quantity, this.theme);
    this.legendPlace.replaceChildren(legend(quantity, this.view.palette));
    this.root.style.setProperty("--pv-lineage", css(this.theme.lineage));
  }

  retheme() {
    super.retheme();
    if (this.view.record) this.grid.measure(this.view);
  }

  _updateTransport() {
    const { record, t } = this.view;
    const { steps, T } = record;
    this.transport.update({ t, steps, T, complete: steps >= T, note: t > 0 ? essInWords(record, t) : "" });
  }

  /** What the parts of the view are drawn from, at the shown step. */
  _arrange() {
    const { view } = this;
    const { record, t, selection } = view;
    view.genealogy = genealogy(record, t);
    view.order = arrange(record, t, view.sort);
    view.marks = selection && t > 0 ? family(record, selection, t) : null;
    view.related = this._related();
    if (view.hover) view.hover = view.hover.s < t ? { ...view.hover, slot: this.grid.slotAt(view, view.hover.s, view.hover.row) } : null;
  }

  get _drawn() {
    return this.withStrips ? [...this.overSteps, ...this.strips] : this.overSteps;
  }

  paint() {
    const { view } = this;
    this._arrange();
    view.sight = this.grid.look(view);
    this.population.draw(view);
    for (const strip of this._drawn) strip.draw(view);
    this.grid.draw(view);
    this.inspector.show(view, view.hover ?? this._focus());
    this._updateTransport();
    this._say();
    Object.assign(this.stats, { t: view.t, steps: view.record.steps });
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this._rest(), REST_MS);
  }

  /** What the figure of this view is made of. */
  _figure() {
    const { view, population } = this;
    const { prompt, target } = view.record.header;
    const lines = [`“${prompt}”   ${target}`, this.verdict.textContent, this.numbers.textContent];
    const plots = this._drawn.map((strip) => ({
      canvas: strip.canvas, title: `${strip.title}${strip.colours ?? ""}: ${strip.said}`, draw: () => strip.draw(view),
    }));
    plots.unshift({ canvas: population.canvas, title: "Population", draw: () => population.draw(view) });
    return { lines: lines.filter(Boolean), plots, theme: this.theme };
  }

  /** The token under the lens: the one that was clicked; it leaves while it is not on show. */
  _focus() {
    const { focus, t } = this.view;
    return focus && focus.s < t ? focus : null;
  }

  /** Nothing has moved for a while: put real text over the rows in sight. */
  _rest() {
    if (this.signal.aborted || !this.view.record) return;
    const active = this.grid.rows.show(this.view, this.grid);
    if (active) this.grid.el.setAttribute("aria-activedescendant", active);
    else this.grid.el.removeAttribute("aria-activedescendant");
    this.stats.rests = this.stats.renders;
  }

  /** The shown step, and the selected particle, in a sentence each. */
  _say() {
    const { record, t, genealogy: { survivors } } = this.view;
    const { level = "", text = "" } = record.header.verdict ?? {};
    this.verdict.dataset.level = level;
    explain(this.verdict, text);
    const logZ = t > 0 ? `log Ẑ ${number(record.logZ[t - 1])}${errorInWords(record, t)}` : "log Ẑ 0.00";
    const numbers = [logZ, essInWords(record, t), `${plural(survivors[0] ?? record.K, "ancestor")} left`].join(" · ");
    explain(this.numbers, numbers);
    write(this.story, stepInWords(record, t));
    write(this.lineageNote, lineageInWords(this.view));
  }
}

/** @param {RunRecord} record @param {number} t */
function essInWords({ ess, K }, t) {
  return `ESS ${number(t > 0 ? ess[t - 1] : K, 1)} of ${K}`;
}

export default host(ParticleView);
