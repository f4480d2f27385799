
/** @file The model of a view in a page of its own: it answers as Python would. */

const stored = JSON.parse(/** @type {string} */ (document.getElementById("state")?.textContent));

/** @param {any} value a trait as it was stored */
function revive(value) {
  if (value === null || typeof value !== "object" || !("base64" in value)) return value;
  return new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer);
}

/** @param {number} run */
function traitsOf(run) {
  const entries = Object.entries(stored.runs[run]);
  return Object.fromEntries(entries.map(([name, value]) => [name, revive(value)]));
}

const offline = {
  state: { status: {}, step: 0, hold: false, more: 0, hello: 0, welcome: 0, alone: true },
  /** @type {Record<string, (() => void)[]>} */
  heard: {},
  asked: stored.run,
  /** @param {string} name */
  get(name) {
    return this.state[name];
  },
  /** @param {string} name @param {any} value */
  set(name, value) {
    if (this.state[name] === value) return;
    this.state[name] = value;
    for (const act of this.heard[`change:${name}`] ?? []) act();
  },
  save_changes() {
    this.set("welcome", this.get("hello"));
    if (this.asked === this.get("run")) return;
    this.asked = this.get("run");
    const traits = traitsOf(this.asked);
    Object.assign(this.state, traits);
    for (const name of Object.keys(traits)) {
      for (const act of this.heard[`change:${name}`] ?? []) act();
    }
  },
  /** @param {string} name @param {() => void} act */
  on(name, act) {
    (this.heard[name] ??= []).push(act);
  },
  /** @param {string} name @param {() => void} act */
  off(name, act) {
    this.heard[name] = (this.heard[name] ?? []).filter((each) => each !== act);
  },
};
Object.assign(offline.state, traitsOf(stored.run), {
  run: stored.run,
  offered: Object.keys(stored.runs).map(Number),
});
widget.render({ model: offline, el: /** @type {HTMLElement} */ (document.getElementById("view")) });
