/** @file The panels made of words: what the run is, its state, and its final samples. */

/** Which of several runs is on show. */
class RunMenu {
  /** @param {(run: number) => void} onRun @param {AbortSignal} signal */
  constructor(onRun, signal) {
    /** @type {number[]} */
    this.runs = [];
    this.menu = h("select", { "aria-label": "Run shown" });
    this.menu.addEventListener("change", () => onRun(Number(this.menu.value)), { signal });
    this.el = h("label", { class: "pv-field" }, "run ", this.menu);
  }

  /** @param {any} header @param {number[] | undefined} offered runs that can be shown; all if undefined */
  show(header, offered) {
    this.runs = offered ?? header.runs.map((/** @type {any} */ _, /** @type {number} */ i) => i);
    this.el.hidden = this.runs.length < 2;
    const names = this.runs.map(
      (run) => `${run + 1} of ${header.runs.length}, log Ẑ ${number(Number(header.runs[run]))}`,
    );
    if (this.names !== names.join()) {
      this.names = names.join();
      this.menu.replaceChildren(...this.runs.map((run, i) => h("option", { value: String(run) }, names[i])));
    }
    this.menu.value = String(header.run);
  }

  /** @param {number} run */
  offers(run) {
    return this.runs.includes(run);
  }
}

/** Prompt, target and settings, and which of several runs is on show. */
class Heading {
  /** @param {RunMenu} runs */
  constructor(runs) {
    this.prompt = h("span", { class: "pv-prompt" });
    this.target = h("span", { class: "pv-target" });
    this.facts = h("span", { class: "pv-fact-list" });
    this.el = h(
      "header",
      { class: "pv-heading" },
      h("p", {}, this.prompt, this.target),
      h("p", { class: "pv-facts" }, this.facts, runs.el),
    );
  }

  /** @param {any} header */
  show(header) {
    this.prompt.textContent = header.prompt ? `“${readableText(header.prompt)}”` : "(no prompt)";
    this.target.textContent = header.target || "";
    const facts = [
      `K = ${plural(header.num_particles, "particle")}`,
      `T = ${plural(header.num_steps, "token")}`,
      ...header.facts,
    ];
    this.facts.replaceChildren(...facts.map((fact) => h("span", {}, fact)));
  }
}

/** A text with its line breaks shown. @param {string} text */
function readableText(text) {
  return text.trim().replace(/\s*\n\s*/g, " ↵ ");
}

/** What the computation is doing, and errors, in words. */
class Status {
  constructor() {
    this.text = h("span", { class: "pv-status-text" });
    this.el = h("p", { class: "pv-status", role: "status" }, this.text);
    this.alert = h("p", { class: "pv-alert", role: "alert", hidden: "" });
    this.lost = h("p", { class: "pv-alert pv-lost", role: "alert", hidden: "" });
    this.lost.textContent =
      "No contact with Python: wait if another cell is running, else run this cell again.";
  }

  /** @param {any} status */
  show(status) {
    const { state = "", text = "", error = "" } = status || {};
    this.el.dataset.state = state;
    this.text.textContent = text;
    this.el.hidden = text === "";
    if (this.alert.textContent !== error) this.alert.textContent = error;
    this.alert.hidden = error === "";
  }
}

/** The weighted samples of a finished run, equal texts together. */
class Samples {
  /** @param {(slot: number) => void} onSelect @param {AbortSignal} signal */
  constructor(onSelect, signal) {
    this.count = h("span", { class: "pv-note" });
    this.body = h("tbody");
    const head = h("tr");
    const titles = ["weight", "particles", "log φ (nats)", "text"];
    head.append(...titles.map((title) => h("th", { scope: "col" }, title)));
    this.scroller = h(
      "div",
      { class: "pv-samples-scroller", tabindex: "0", role: "region", "aria-label": "Final samples" },
      h("table", {}, h("thead", {}, head), this.body),
    );
    this.el = h(
      "section",
      { class: "pv-samples" },
      h("h4", {}, "Final samples ", this.count),
      this.scroller,
    );
    this.body.addEventListener(
      "click",
      (event) => {
        const row = /** @type {Element} */ (event.target).closest("tr");
        if (row) onSelect(Number(row.dataset.slot));
      },
      { signal },
    );
  }

  /** @param {RunRecord} record */
  show(record) {
    const { samples } = record.header;
    this.scroller.hidden = samples.length === 0;
    if (samples.length === 0) {
      this.count.textContent = `after step ${record.T}, when log φ has been weighed in`;
      this.body.replaceChildren();
      return;
    }
    const { num_texts: texts } = record.header;
    const some = texts > samples.length ? `, the ${samples.length} heaviest` : "";
    this.count.textContent =
      `${plural(texts, "different text")} of ${plural(record.K, "particle")}${some}, by weight`;
    const rows = samples.map((/** @type {any} */ sample) => {
      const weight = Number(sample.weight);
      const row = h(
        "tr",
        { "data-slot": String(sample.slot), class: weight === 0 ? "pv-dead-row" : "" },
        h("td", {}, percent(weight)),
        h("td", {}, String(sample.copies)),
        h("td", {}, number(Number(sample.log_phi))),
        h("td", {}, h("span", { class: "pv-note" }, record.header.prompt), ` ${readableText(sample.text)}`),
      );
      return row;
    });
    this.body.replaceChildren(...rows);
  }
}
