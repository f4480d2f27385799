/** @file A button that copies a text to the clipboard, and shows it where that is not allowed. */

import { host } from "./contact.js";
import { button, h } from "./dom.js";

class CodeButton {
  /** @param {Place} place */
  constructor({ model, el, signal }) {
    const code = h("pre", { tabindex: "0", "aria-label": "The Python that makes this run", hidden: "" });
    const result = h("span", { role: "status" });
    const reveal = (/** @type {boolean} */ open) => {
      code.hidden = !open;
      draw();
    };
    const show = button({}, () => reveal(code.hidden), signal);
    const draw = () => {
      code.textContent = model.get("text");
      show.textContent = code.hidden ? "Show code" : "Hide code";
      show.setAttribute("aria-expanded", String(!code.hidden));
    };
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(model.get("text"));
        result.textContent = "Copied";
      } catch {
        // Without a right to the clipboard a person copies what is selected.
        reveal(true);
        getSelection()?.selectAllChildren(code);
        result.textContent = "Selected: copy it by keyboard";
      }
    };
    const changed = () => {
      result.textContent = "";
      draw();
    };
    const refused = () => (result.textContent = model.get("status")?.error ?? "");
    const heard = { "change:text": changed, "change:status": refused };
    for (const [event, act] of Object.entries(heard)) {
      model.on(event, act);
      signal.addEventListener("abort", () => model.off(event, act));
    }
    const main = button({ title: "The Python that makes this very run" }, copy, signal, "Copy as code");
    this.root = h("div", { class: "tw-code" }, h("p", {}, main, show, result), code);
    el.append(this.root);
    draw();
  }
}

export default host(CodeButton);
