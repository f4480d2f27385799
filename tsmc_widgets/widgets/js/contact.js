/** @file What every view needs of its host: an answer from Python, themes, keys, and a clean end. */

const CONTACT_MS = 5000;
const TOGETHER = "tsmc-views-move-together";
const THEME_ATTRIBUTES = ["class", "style", "data-jp-theme-name", "data-vscode-theme-kind"];

/**
 * A front end that starts too late hears nothing, without an error: so ask for an answer.
 * @param {any} model
 * @param {HTMLElement} lost shown while there is none
 * @param {string[]} signs events that show that Python speaks, as a run's thread does even while
 *   the kernel is busy with another cell
 * @param {AbortSignal} signal
 */
function greet(model, lost, signs, signal) {
  const word = Math.floor(Math.random() * 1e9) + 1;
  const heard = () => {
    lost.hidden = true;
    clearTimeout(timer);
  };
  const answered = () => model.get("welcome") === word && heard();
  const timer = setTimeout(() => (lost.hidden = false), CONTACT_MS);
  const acts = [["change:welcome", answered], ...signs.map((name) => [name, heard])];
  for (const [name, act] of acts) model.on(name, act);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    for (const [name, act] of acts) model.off(name, act);
  });
  model.set("hello", word);
  model.save_changes();
}

/**
 * Set what has changed and send it; a view without a kernel goes on without an answer.
 * @param {any} model @param {Record<string, any>} values
 */
function tellPython(model, values) {
  const changed = Object.entries(values).filter(([name, value]) => model.get(name) !== value);
  if (changed.length === 0) return;
  for (const [name, value] of changed) model.set(name, value);
  model.save_changes();
}

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
function runsOf(record) {
  return record ? `${record.header.run} of ${record.header.runs}` : "";
}

/**
 * Views of one group do together what a person does in one of them: in the browser alone, so that
 * they need no kernel for it.
 */
class Group {
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

/** What a module exports for a view. @param {any} View a class with a `root` element */
function host(View) {
  return {
    /** @param {{model: any, el: HTMLElement, signal?: AbortSignal}} context */
    render({ model, el, signal }) {
      // Hosts differ in whether they give a signal or call the clean-up: serve both.
      const own = new AbortController();
      signal?.addEventListener("abort", () => own.abort());
      const view = new View({ model, el, signal: own.signal });
      return () => {
        own.abort();
        view.root.remove();
      };
    },
  };
}
