/** @file The models of a page's views: they answer as Python would. */

const stored = JSON.parse(/** @type {string} */ (document.getElementById("state")?.textContent));

/** @param {any} value a trait as it was stored */
function revive(value) {
  if (value === null || typeof value !== "object" || !("base64" in value)) return value;
  return new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer);
}

/** @param {Record<string, any>} traits */
function reviveAll(traits) {
  return Object.fromEntries(Object.entries(traits).map(([name, value]) => [name, revive(value)]));
}

/** One view's traits, of whichever run it asks for. */
class OfflineModel {
  /** @param {{runs: Record<string, any>, state: Record<string, any>}} part @param {number} run */
  constructor({ runs, state }, run) {
    this.runs = runs;
    this.asked = run;
    const plain = { status: {}, step: 0, hold: false, more: 0, hello: 0, welcome: 0, alone: true };
    const offered = Object.keys(runs).map(Number);
    /** @type {Record<string, any>} */
    this.state = { ...plain, ...state, ...reviveAll(runs[run]), run, offered };
    /** @type {Record<string, (() => void)[]>} */
    this.heard = {};
  }

  /** @param {string} name */
  get(name) {
    return this.state[name];
  }

  /** @param {string} name @param {any} value */
  set(name, value) {
    if (this.state[name] === value) return;
    this.state[name] = value;
    this._tell(name);
  }

  /** @param {string} name */
  _tell(name) {
    for (const act of this.heard[`change:${name}`] ?? []) act();
  }

  save_changes() {
    this.set("welcome", this.get("hello"));
    if (this.asked === this.get("run")) return;
    this.asked = this.get("run");
    this.update(reviveAll(this.runs[this.asked]));
  }

  /** Change several traits, then tell of each. @param {Record<string, any>} traits */
  update(traits) {
    Object.assign(this.state, traits);
    for (const name of Object.keys(traits)) this._tell(name);
  }

  /** @param {string} name @param {() => void} act */
  on(name, act) {
    (this.heard[name] ??= []).push(act);
  }

  /** @param {string} name @param {() => void} act */
  off(name, act) {
    this.heard[name] = (this.heard[name] ?? []).filter((each) => each !== act);
  }
}

/** The model of each view. */
const models = stored.parts.map((/** @type {any} */ part, /** @type {number} */ i) => {
  const el = document.createElement("section");
  document.getElementById("views")?.append(el);
  const model = new OfflineModel(part, stored.run);
  widgets[i].render({ model, el });
  return model;
});
