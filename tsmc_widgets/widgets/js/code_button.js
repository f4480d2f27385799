// A button that puts a text on the clipboard, and shows it where it may not.

/** @param {any} props */
function render({ model, el, signal }) {
  const button = document.createElement("button");
  const show = document.createElement("button");
  const said = document.createElement("span");
  const code = document.createElement("pre");
  const root = document.createElement("div");
  root.className = "tw-code";
  button.textContent = "Copy as code";
  button.title = "The Python that makes this very run";
  said.setAttribute("role", "status");
  code.tabIndex = 0;
  code.setAttribute("aria-label", "The Python that makes this run");
  code.hidden = true;
  for (const each of [button, show, code]) each.dataset.lmSuppressShortcuts = "true";
  for (const each of [button, show]) each.type = "button";

  const draw = () => {
    code.textContent = model.get("text");
    show.textContent = code.hidden ? "Show code" : "Hide code";
    show.setAttribute("aria-expanded", String(!code.hidden));
  };
  const reveal = open => {
    code.hidden = !open;
    draw();
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(model.get("text"));
      said.textContent = "Copied";
    } catch {
      // Without a right to the clipboard a person copies what is selected.
      reveal(true);
      getSelection()?.selectAllChildren(code);
      said.textContent = "Selected: copy it by keyboard";
    }
  };
  button.addEventListener("click", copy, { signal });
  show.addEventListener("click", () => reveal(code.hidden), { signal });
  const moved = () => {
    said.textContent = "";
    draw();
  };
  model.on("change:text", moved);
  signal?.addEventListener("abort", () => model.off("change:text", moved));
  const row = document.createElement("p");
  row.append(button, show, said);
  root.append(row, code);
  el.append(root);
  draw();
}

export default { render };
