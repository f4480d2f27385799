/** @file What every view of a run shares: its record, its play head, its menu of runs, and its group. */

import { Group, View } from "./contact.js";
import { clamp, h } from "./dom.js";
import { RunMenu, Status } from "./panels.js";
import { RunRecord } from "./record.js";

const NUM_PAGES = 16;
const PAGE_NAMES = Array.from({ length: NUM_PAGES }, (_, i) => `page${i}`);

/** How long nothing must move until what a moving play head leaves out is drawn too. */
export const REST_MS = 140;

/**
 * A subclass makes `root`, `body` and `paint`, and says in `key` what the keys do. `view` is what
 * its parts are drawn from: the record, the step on show, and more.
 */
export class RunView extends View {
  /** @param {Place} place @param {Record<string, number>} counts */
  constructor(place, counts) {
    super(place, { t: 0, steps: 0, ...counts });
    /** @type {any} */
    this.view = { record: null, t: 0 };
    /** Step to show; infinite at the frontier of a run, which is then followed. */
    this.wanted = Infinity;
    this.status = new Status();
    this.group = new Group(this.model, (news) => this.follow(news), this.signal);
    this.runs = new RunMenu((run) => this._pickRun(run), this.signal);
    this.empty = h("p", { class: "pv-empty" }, "Waiting for the first step …");
  }

  /** @param {string[]} traits that the record comes in, beside header and pages @param {string[]} signs see `_greet` */
  listen(traits, signs) {
    const { model, signal, root } = this;
    const load = () => this._later(() => this._read() && this.load());
    this._on(["header", ...traits, ...PAGE_NAMES], load);
    this._on(["step"], () => this._later(() => this.seek(model.get("step"))));
    const press = (/** @type {KeyboardEvent} */ event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || !this.key(event)) return;
      event.preventDefault();
      event.stopPropagation();
    };
    root.addEventListener("keydown", press, { signal });
    signal.addEventListener("abort", () => clearTimeout(this.rest));
    if (this._read()) this.load();
    if (!model.get("alone")) this._greet(this.status.lost, signs);
  }

  /** Read the record again; whether anything has changed. */
  _read() {
    const { model, view } = this;
    const [header, samples] = [model.get("header"), model.get("samples")];
    if (this.loaded === header && this.sampled === samples) return false;
    const record = RunRecord.of(view.record, header, PAGE_NAMES.map((name) => model.get(name)));
    if (!record) return false;
    [this.loaded, this.sampled] = [header, samples];
    /** Whether the record is of another run than before. */
    this.isOther = view.record !== record;
    view.record = record;
    this.runs.show(header, model.get("offered"));
    return true;
  }

  /** The play head stays where it was put; at the frontier it follows it. */
  load() {}

  /** @param {number} t @param {boolean} [told] by another view of the group, which knows it */
  seek(t, told = false) {
    const { view } = this;
    if (!view.record) return;
    view.t = clamp(t, 0, view.record.steps);
    this.wanted = view.t === view.record.steps ? Infinity : view.t;
    this.schedule();
    if (!told) this.group.tell({ t: view.t });
  }

  /** A movement has ended: send where. */
  settle() {
    this._ask({ step: this.view.t });
  }

  /** Another view of the group was moved. @param {News} news */
  follow({ t, run }) {
    if (t !== undefined) this.seek(t, true);
    if (run !== undefined && this.runs.offers(run)) this._ask({ run });
  }

  /** @param {number} run */
  _pickRun(run) {
    this._ask({ run });
    this.group.tell({ run });
  }

  ready() {
    const known = Boolean(this.view.record);
    this.body.hidden = !known;
    this.empty.hidden = known;
    return known;
  }
}
