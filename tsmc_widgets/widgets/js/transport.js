/**
 * @file The transport bar: play head, buttons, keys. It moves a step; what is shown is not its business.
 */

import { button, clamp, h, icon, write } from "./dom.js";
import { Menu } from "./panels.js";

const SPEEDS = [1, 2, 4, 8, 16, 30];

/** The step on show: a slider over all steps, and a readout. */
export class StepSlider {
  /** @param {(t: number) => void} seek @param {() => void} settled @param {AbortSignal} signal */
  constructor(seek, settled, signal) {
    this.range = h("input", { type: "range", min: "0", step: "1", "aria-label": "Step shown" });
    this.range.addEventListener("input", () => seek(Number(this.range.value)), { signal });
    this.range.addEventListener("change", settled, { signal });
    this.rail = h("div", { class: "pv-range" }, this.range);
    this.readout = h("output", { class: "pv-readout" });
  }

  /** @param {number} t @param {number} T @param {string} [note] said with the step */
  show(t, T, note = "") {
    if (this.range.max !== String(T)) this.range.max = String(T);
    if (this.range.value !== String(t)) this.range.value = String(t);
    const place = `step ${t} of ${T}`;
    const spoken = t === 0 ? `prompt, before step 1 of ${T}` : place;
    const told = note ? `${spoken}, ${note}` : spoken;
    if (this.told !== told) this.range.setAttribute("aria-valuetext", (this.told = told));
    write(this.readout, place);
  }
}

/** Play, pause, step, rewind and scrub over the recorded steps. */
export class Transport {
  /**
   * @param {{seek: (t: number) => void, hold: (on: boolean) => void, more: () => void,
   *   settled: () => void}} on what the bar asks of the view
   * @param {AbortSignal} signal
   */
  constructor(on, signal) {
    this.on = on;
    this.t = 0;
    this.steps = 0;
    this.T = 1;
    this.complete = true;
    this.playing = false;
    this.running = false;
    this.shownLabel = "";
    this.rate = 4;
    /** @type {(name: any, label: string, act: () => void) => any} */
    const control = (name, label, act) => button({ title: label, "aria-label": label }, act, signal, icon(name));
    this.playButton = control("play", "Play (Space)", () => this.toggle());
    const speed = { "aria-label": "Speed, steps a second" };
    this.speed = new Menu("speed", () => (this.rate = Number(this.speed.value)), signal, speed);
    this.speed.offer(SPEEDS.map((rate) => [String(rate), `${rate} / s`]), String(this.rate));
    this.slider = new StepSlider((t) => this.scrub(t), () => on.settled(), signal);
    this.el = h(
      "div",
      { class: "pv-transport", role: "group", "aria-label": "Playback" },
      h(
        "span",
        { class: "pv-buttons" },
        control("rewind", "Rewind to the prompt (Home)", () => this.scrub(0, true)),
        control("back", "Back one step (left arrow)", () => this.scrub(this.t - 1, true)),
        this.playButton,
        control("step", "One step on (right arrow)", () => this.forward()),
      ),
      this.slider.readout,
      this.speed.el,
    );
    signal.addEventListener("abort", () => this._stop());
  }

  /**
   * Tell the bar what is recorded and shown.
   * @param {{t: number, steps: number, T: number, complete: boolean, note: string}} now
   */
  update({ t, steps, T, complete, note }) {
    Object.assign(this, { t, steps, T, complete });
    this._show();
    this.slider.show(t, T, note);
  }

  /** Whether what is on show moves: played from the record, or followed as it is computed. */
  get moving() {
    return this.playing || (this.running && !this.complete && this.t >= this.steps);
  }

  /** @param {boolean} running whether Python is computing */
  setRunning(running) {
    this.running = running;
    this._show();
  }

  toggle() {
    if (this.moving) this.pause();
    else this.play();
  }

  /** @param {number} [until] the last step that is played @param {() => void} [then] once it is on show */
  play(until = Infinity, then = () => {}) {
    if (this.complete && this.t >= this.steps) this.on.seek(0);
    this.on.hold(false);
    this.playing = true;
    this._show();
    let last = performance.now();
    const tick = (/** @type {number} */ now) => {
      if (!this.playing) return;
      const due = Math.floor(((now - last) * this.rate) / 1000);
      if (due > 0) {
        last = now;
        if (this.t < this.steps) this.on.seek(Math.min(this.steps, until, this.t + due));
        if (this.t >= until || (this.complete && this.t >= this.steps)) {
          this._stop(true);
          return then();
        }
      }
      this.frame = requestAnimationFrame(tick);
    };
    this.frame = requestAnimationFrame(tick);
  }

  pause() {
    this._stop(true);
    this.on.hold(true);
  }

  /** @param {boolean} [settle] */
  _stop(settle = false) {
    cancelAnimationFrame(this.frame ?? 0);
    this.playing = false;
    this._show();
    if (settle) this.on.settled();
  }

  _show() {
    const label = this.moving ? "Pause (Space)" : "Play (Space)";
    if (label === this.shownLabel) return;
    this.shownLabel = label;
    this.playButton.replaceChildren(icon(this.moving ? "pause" : "play"));
    this.playButton.setAttribute("aria-label", label);
    this.playButton.title = label;
  }

  /** @param {number} t @param {boolean} [settle] */
  scrub(t, settle = false) {
    if (this.playing) this._stop();
    this.on.seek(clamp(t, 0, this.steps));
    if (settle) this.on.settled();
  }

  /** One step on; at the frontier of an unfinished run the next one is asked for. */
  forward() {
    if (this.t >= this.steps && !this.complete) {
      if (this.playing) this._stop();
      this.on.more();
    } else this.scrub(this.t + 1, true);
  }

  /**
   * Keys of the whole view, where the focused control has no use for them.
   * @param {KeyboardEvent} event
   */
  key(event) {
    const target = /** @type {Element} */ (event.target);
    if (target.tagName === "SELECT") return false;
    const acts = {
      ArrowLeft: () => this.scrub(this.t - 1, true),
      ArrowRight: () => this.forward(),
      Home: () => this.scrub(0, true),
      End: () => this.scrub(this.steps, true),
      " ": () => this.toggle(),
    };
    if (!(event.key in acts) || (event.key === " " && target.tagName === "BUTTON")) return false;
    acts[event.key]();
    return true;
  }
}
