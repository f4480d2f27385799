/** @file What every view needs of its host: an answer from Python, themes, keys, and a clean end. */

import { css, keepKeys, watchSizes } from "./dom.js";
import { readTheme } from "./scales.js";

const CONTACT_MS = 5000;
const TOGETHER = "tsmc-views-move-together";
const THEME_ATTRIBUTES = ["class", "style", "data-jp-theme-name", "data-vscode-theme-kind"];

/** @param {() => void} changed @param {AbortSignal} signal */
function watchThemes(changed, signal) {
  const themes = new MutationObserver(changed);
  for (const node of [document.body, document.documentElement]) {
    themes.observe(node, { attributes: true, attributeFilter: THEME_ATTRIBUTES });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed, { signal });
  signal.addEventListener("abort", () => themes.disconnect());
}

/**
 * The controls beside a view are not its own, and JupyterLab would read their keys too.
 * @param {HTMLElement} root @param {AbortSignal} signal
 */
function keepKeysAround(root, signal) {
  const keep = (/** @type {FocusEvent} */ { target }) => {
    const node = /** @type {Element} */ (target);
    if (root.closest(".tsmc-watch")?.contains(node)) keepKeys(node);
  };
  document.addEventListener("focusin", keep, { signal });
}

/**
 * What was done in one view: another step, another run, a final particle picked (of which runs),
 * or play pressed.
 * @typedef {{t?: number, run?: number, slot?: number, of?: string, play?: boolean}} News
 */

/** Tells the runs of one side of a comparison from the other's. @param {any} record */
export function runsOf(record) {
  return record ? `${record.header.run} of ${record.header.runs}` : "";
}

/**
 * Views of one group do together what a person does in one of them: in the browser alone, so that
 * they need no kernel for it.
 */
export class Group {
  /**
   * @param {any} model @param {(news: News) => void} hear
   * @param {AbortSignal} signal
   */
  constructor(model, hear, signal) {
    this.model = model;
    const listen = (/** @type {any} */ { detail: { group, from, news } }) => {
      if (from !== this && group !== "" && group === model.get("group")) hear(news);
    };
    document.addEventListener(TOGETHER, listen, { signal });
  }

  /** @param {News} news */
  tell(news) {
    const group = this.model.get("group");
    if (!group) return;
    document.dispatchEvent(new CustomEvent(TOGETHER, { detail: { group, from: this, news } }));
  }
}

/** @typedef {{model: any, el: HTMLElement, signal: AbortSignal}} Place where a view stands */

/**
 * A view hears its model, and draws what has changed once a frame. A subclass makes `root` and
 * `paint`, and says in `ready` whether there is anything to paint.
 */
export class View {
  /** @param {Place} place @param {Record<string, number>} counts what `stats` tells beside draws */
  constructor({ model, signal }, counts) {
    this.model = model;
    this.signal = signal;
    /** For tests and measurements: counts draws and times them. @type {Record<string, number>} */
    this.stats = { renders: 0, ms: 0, maxMs: 0, ...counts };
  }

  /**
   * Stand on the page, and draw again where room or theme has changed.
   * @param {HTMLElement} el @param {HTMLElement[]} parts whose sizes matter, beside all canvases'
   */
  _mount(el, ...parts) {
    const { root, signal } = this;
    Object.assign(root, { _stats: this.stats });
    el.append(root);
    keepKeysAround(root, signal);
    watchSizes([root, ...parts, ...root.querySelectorAll("canvas")], () => this.redraw(), signal);
    watchThemes(() => this.retheme(), signal);
    signal.addEventListener("abort", () => cancelAnimationFrame(this.frame ?? 0));
  }

  /** @param {string[]} names of traits @param {() => void} act */
  _on(names, act) {
    const events = names.map((name) => `change:${name}`);
    for (const event of events) this.model.on(event, act);
    this.signal.addEventListener("abort", () => events.forEach((event) => this.model.off(event, act)));
  }

  /** All traits of an update are set before any is read. @param {() => void} act */
  _later(act) {
    queueMicrotask(() => this.signal.aborted || act());
  }

  /**
   * A front end that starts too late hears nothing, without an error: so ask for an answer.
   * @param {HTMLElement} lost shown while there is none
   * @param {string[]} signs traits that show that Python speaks, as a run's thread does even while
   *   the kernel is busy with another cell
   */
  _greet(lost, signs) {
    const token = Math.floor(Math.random() * 1e9) + 1;
    const timer = setTimeout(() => (lost.hidden = false), CONTACT_MS);
    const heard = () => {
      lost.hidden = true;
      clearTimeout(timer);
    };
    this._on(["welcome"], () => this.model.get("welcome") === token && heard());
    this._on(signs, heard);
    this.signal.addEventListener("abort", () => clearTimeout(timer));
    this._ask({ hello: token });
  }

  /**
   * Set what has changed and send it; a view without a kernel goes on without an answer.
   * @param {Record<string, any>} values
   */
  _ask(values) {
    const changed = Object.entries(values).filter(([name, value]) => this.model.get(name) !== value);
    for (const [name, value] of changed) this.model.set(name, value);
    if (changed.length) this.model.save_changes();
  }

  /** Tell Python which button was pressed. @param {string} act */
  _press(act) {
    this._ask({ ask: { act, n: (this.model.get("ask")?.n ?? 0) + 1 } });
  }

  readTheme() {
    this.theme = readTheme(this.root);
    const { blue, orange } = this.theme;
    this.root.style.setProperty("--pv-blue", css(blue));
    this.root.style.setProperty("--pv-orange", css(orange));
  }

  retheme() {
    this.readTheme();
    this.redraw();
  }

  /** Draw all of it with the next frame. */
  redraw() {
    this.schedule();
  }

  schedule() {
    if (this.frame || this.signal.aborted) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  /** Whether there is anything to paint. */
  ready() {
    return true;
  }

  draw() {
    if (!this.ready()) return;
    // A view that is not yet on the page has no font.
    if (!this.theme?.font) this.retheme();
    const { stats } = this;
    const start = performance.now();
    this.paint(start);
    stats.ms = performance.now() - start;
    stats.maxMs = Math.max(stats.maxMs, stats.ms);
    stats.renders += 1;
  }
}

/** What a module exports for a view. @param {any} Shown a class with a `root` element */
export function host(Shown) {
  return {
    /** @param {{model: any, el: HTMLElement, signal?: AbortSignal}} context */
    render({ model, el, signal }) {
      // Hosts differ in whether they give a signal or call the clean-up: serve both.
      const own = new AbortController();
      signal?.addEventListener("abort", () => own.abort());
      const view = new Shown({ model, el, signal: own.signal });
      return () => {
        own.abort();
        view.root.remove();
      };
    },
  };
}
