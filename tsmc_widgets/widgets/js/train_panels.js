/** @file The panels of a training made of words: what is trained, buttons, numbers, and texts. */

/** Nats below log phi = 0 at which the bar of a text is empty. */
const BAR_NATS = 8;

/** Prompt, target and settings. */
class TrainHeading {
  constructor() {
    this.prompt = h("span", { class: "pv-prompt" });
    this.target = h("span", { class: "pv-target" });
    this.facts = h("p", { class: "pv-facts" });
    this.el = h("header", { class: "pv-heading" }, h("p", {}, this.prompt, this.target), this.facts);
  }

  /** @param {any} header */
  show(header) {
    this.el.hidden = !header.target;
    if (!header.target) return;
    this.prompt.textContent = `“${header.prompt}”`;
    this.target.textContent = `φ = ${header.target}`;
    const facts = [
      header.problem,
      `T = ${plural(header.num_steps, "token")}`,
      header.form,
      `learning rate ${Number(header.learning_rate.toPrecision(2))}`,
      `batch of ${header.batch_size}`,
      `seed ${header.seed}`,
    ];
    this.facts.replaceChildren(...facts.map((fact) => h("span", {}, fact)));
  }
}

/** Start, pause, stop, start over, save. */
class TrainBar {
  /** @param {(act: string) => void} press @param {(folder: string) => void} name @param {AbortSignal} signal */
  constructor(press, name, signal) {
    /** @type {(icon: any, label: string, title: string, act: () => string) => any} */
    const button = (image, label, title, act) => {
      const text = h("span", {}, label);
      const node = h("button", { type: "button", class: "tl-button", title }, icon(image), text);
      node.addEventListener("click", () => press(act()), { signal });
      return node;
    };
    this.main = button("play", "Start", "", () => this.act);
    this.main.classList.add("tl-main");
    this.stop = button("stop", "Stop", "Stop after this update; all that was learned stays", () => "stop");
    this.again = button("again", "Start over", "Forget what was learned and begin anew", () => "restart");
    this.save = h("button", { type: "button", class: "tl-button", title: "Save the twist into this folder" }, "Save");
    this.save.addEventListener("click", () => press("save"), { signal });
    this.folder = h("input", { type: "text", size: "14", "aria-label": "Folder to save into", spellcheck: "false" });
    this.folder.addEventListener("change", () => name(this.folder.value), { signal });
    this.note = h("span", { class: "pv-note", role: "status" });
    this.act = "start";
    this.el = h(
      "div",
      { class: "pv-transport", role: "group", "aria-label": "Training" },
      h("span", { class: "pv-buttons" }, this.main, this.stop, this.again),
    );
    this.saving = h("span", { class: "tl-saving" }, this.note, this.folder, this.save);
  }

  /** @param {any} status @param {boolean} begun whether there is a twist */
  show(status, begun) {
    const { state = "idle", stale = "" } = status;
    const going = state === "running" && !stale;
    const label = stale
      ? "Start anew"
      : { idle: "Start", running: "Pause", failed: "Try again" }[state] ?? (state === "done" ? "Train more" : "Go on");
    this.act = going ? "pause" : "start";
    if (this.label !== label) {
      this.label = label;
      this.main.replaceChildren(icon(going ? "pause" : "play"), h("span", {}, label));
    }
    this.stop.disabled = state !== "running" && state !== "paused";
    this.again.hidden = state === "idle" || stale !== "";
    this.save.disabled = !begun;
    this.note.textContent = status.note || "";
  }
}

/** Says that controls were moved away from what is on show. */
class StaleNote {
  /** @param {(act: string) => void} press @param {AbortSignal} signal */
  constructor(press, signal) {
    this.text = h("span", {});
    this.undo = h("button", { type: "button", class: "tl-button" }, "Undo the change");
    this.undo.addEventListener("click", () => press("undo"), { signal });
    this.el = h("p", { class: "pv-alert tl-stale", role: "status", hidden: "" }, this.text, this.undo);
  }

  /** @param {string} stale */
  show(stale) {
    this.el.hidden = stale === "";
    this.text.textContent =
      `Changed: ${stale}. What is shown below was trained before that. “Start anew” begins a new ` +
      "training and forgets this one. ";
  }
}

/** One row of numbers for each method; choosing a row chooses what the other panels show. */
class RaceTable {
  /** @param {(method: string) => void} choose @param {AbortSignal} signal */
  constructor(choose, signal) {
    this.body = h("tbody");
    const head = h("tr");
    const titles = [
      ["method", ""],
      ["updates", "Updates taken; skipped ones found no text with φ > 0"],
      ["ESS", "Effective sample size as a share of the texts"],
      ["lower bound", "Estimate of E[lower bound] in nats, with its 95 % t-interval"],
      ["upper bound", "Estimate of E[upper bound] in nats, with its 95 % t-interval"],
      ["gap", "Upper minus lower bound, in nats, ± one standard error"],
      ["r", "Correlation of learned and optimal log ψ, means of each step removed"],
      ["mean φ", "Mean of φ over texts of its own proposal, ± one standard error; an estimate"],
    ];
    for (const [title, tip] of titles) head.append(h("th", { scope: "col", title: tip }, title));
    this.el = h(
      "div",
      { class: "tl-race pv-samples", role: "radiogroup", "aria-label": "Methods" },
      h("table", {}, h("thead", {}, head), this.body),
    );
    this.name = `tl${Math.random().toString(36).slice(2, 8)}`;
    this.body.addEventListener("change", (event) => choose(event.target.value), { signal });
    this.rows = new Map();
  }

  /** @param {any} view */
  show({ racers, chosen, looks, theme }) {
    const names = racers.map((racer) => racer.method).join() + theme.dark;
    if (this.names !== names) this._rows(racers, theme);
    this.names = names;
    for (const racer of racers) {
      const { cells, radio, row } = this.rows.get(racer.method);
      radio.checked = racer === chosen;
      row.classList.toggle("tl-chosen", racer === chosen && racers.length > 1);
      const values = this._values(racer, looks);
      cells.forEach((cell, i) => {
        if (cell.textContent !== values[i]) cell.textContent = values[i];
      });
    }
  }

  /** @param {any[]} racers @param {Theme} theme */
  _rows(racers, theme) {
    this.rows.clear();
    for (const { method, proposal_only: only } of racers) {
      const radio = h("input", { type: "radio", name: this.name, value: method });
      radio.hidden = racers.length === 1;
      const label = h("label", {}, radio, key(method, theme), h("b", {}, learnedName(method)));
      if (only) label.append(h("span", { class: "pv-note" }, " proposal only"));
      const cells = Array.from({ length: 7 }, () => h("td"));
      const row = h("tr", {}, h("td", {}, label), ...cells);
      this.rows.set(method, { row, radio, cells });
    }
    this.body.replaceChildren(...[...this.rows.values()].map(({ row }) => row));
  }

  /** @param {any} racer @param {any[]} looks */
  _values(racer, looks) {
    const last = racer.bounds.at(-1);
    const ess = racer.ess.at(-1);
    const look = looks.find(({ method }) => method === racer.method);
    const within = (/** @type {number[]} */ [mean, low, high]) =>
      mean === null ? "−∞" : `${number(mean)} [${low === null ? "?" : number(low)}, ${high === null ? "?" : number(high)}]`;
    const mean = look?.samples?.mean_phi;
    return [
      racer.skipped ? `${racer.done} (${racer.skipped} skipped)` : String(racer.done),
      ess ? percent(ess[1]) : "–",
      last ? within(last.slice(1, 4)) : "–",
      last ? within(last.slice(4, 7)) : "–",
      last && last[7] !== null ? `${number(last[7])} ± ${number(last[8])}` : "–",
      look?.correlation == null ? "–" : number(look.correlation),
      mean ? `${number(mean[0], 3)} ± ${number(mean[1], 3)}` : "–",
    ];
  }
}

/** Texts side by side: of the model itself, and of the proposal that the twist has learned. */
class BeforeAfter {
  constructor() {
    this.before = this._column("Before: the model’s own texts, p₀");
    this.after = this._column("After");
    this.el = h("section", { class: "tl-texts", "aria-label": "Texts before and after" }, this.before.el, this.after.el);
  }

  /** @param {string} title */
  _column(title) {
    const heading = h("h4", {}, title);
    const note = h("p", { class: "pv-note" });
    const body = h("tbody");
    const head = h("tr", {}, h("th", { scope: "col" }, "log φ"), h("th", { scope: "col" }, "text"));
    const table = h("table", {}, h("thead", {}, head), body);
    return { heading, note, body, el: h("div", { class: "pv-samples" }, heading, note, table) };
  }

  /** @param {any} view */
  show({ before, look, chosen, header }) {
    const texts = `the first of ${header.num_texts} texts`;
    this._fill(this.before, before, `mean φ ${this._mean(before)}; ${texts}`, header);
    this.el.hidden = !before;
    const after = look?.samples;
    this.after.el.hidden = !after;
    if (!after) return;
    this.after.heading.textContent = `After ${plural(look.at, "update")} of ${learnedName(chosen.method)}: q ∝ p₀ ψ`;
    this._fill(this.after, after, `mean φ ${this._mean(after)}; the same noise, not weighed or resampled`, header);
  }

  /** @param {any} samples */
  _mean(samples) {
    return samples ? `${number(samples.mean_phi[0], 3)} ± ${number(samples.mean_phi[1], 3)} s.e.` : "–";
  }

  /** @param {any} column @param {any} samples @param {string} note @param {any} header */
  _fill(column, samples, note, header) {
    if (!samples || column.shown === samples) return;
    column.shown = samples;
    column.note.textContent = note;
    const rows = samples.texts.map(([text, logPhi]) => {
      const share = logPhi === null ? 0 : clamp(1 + logPhi / BAR_NATS, 0, 1);
      const fill = h("span", { class: "tl-fill" });
      fill.style.width = `${100 * share}%`;
      const value = h("td", { class: "tl-phi" }, h("span", { class: "tl-bar" }, fill), number(logPhi ?? -Infinity));
      return h("tr", {}, value, h("td", {}, h("span", { class: "pv-note" }, header.prompt), ` ${readableText(text)}`));
    });
    column.body.replaceChildren(...rows);
  }
}
