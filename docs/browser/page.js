/** @file The page on which storybook runs: controls, one run at a time, and the view that shows it. */

const PAGES = 16;

/** A file that the page holds. @param {string} id */
function held(id) {
  const text = document.getElementById(id).textContent;
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
}
const facts = JSON.parse(document.getElementById("facts").textContent);
const words = new Words(facts.vocabulary);
const lm = new GPT2(readTensors(held("lm")), facts.lm);
const judge = new GPT2(readTensors(held("judge")), facts.judge);
const models3 = { lm, judge, words };
const form = document.getElementById("controls");
const note = document.getElementById("note");
const list = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);
let runs = 0;

/** What the controls ask for. */
function asked() {
  const value = (name) => form.elements[name].value;
  const potential = new Potential({
    contains: list(value("with")),
    avoids: list(value("without")),
    stars: Number(value("stars")),
    beta: Number(value("beta")),
  });
  const numbers = Object.fromEntries(["steps", "particles", "seed"].map((n) => [n, Number(value(n))]));
  return { prompt: value("prompt"), potential, ...numbers };
}

/** phi in words. */
function describe({ contains, avoids, stars, beta }) {
  const parts = contains.map((word) => `contains “${word}”`);
  if (avoids.length) parts.push(`avoids ${avoids.map((word) => `“${word}”`).join(", ")}`);
  if (stars) parts.push(`p(${stars} stars | text)^${beta}`);
  return `φ = ${parts.join(" · ") || "1"}`;
}

/** The run so far as the view's traits. */
function traits(id, { prompt, steps, particles, seed, potential }, rows) {
  const size = Math.max(1, Math.ceil(steps / PAGES));
  const places = new Map();
  const texts = [];
  const out = {};
  for (let page = 0; page < PAGES; page++) {
    const part = rows.slice(page * size, (page + 1) * size);
    const known = texts.length;
    const tokens = part.flatMap((row) => row.tokens).map((token) => {
      if (!places.has(token)) places.set(token, texts.push(words.texts[token]) - 1);
      return places.get(token);
    });
    const column = (Type, name) => Type.from(part.flatMap((row) => row[name]));
    const columns = {
      ancestors: column(Uint16Array, "ancestors"),
      weights: column(Float32Array, "weights"),
      resampled: Uint8Array.from(part, (row) => Number(row.resampled)),
      ess: column(Float64Array, "ess"),
      log_z: column(Float64Array, "logZ"),
      log_increment: column(Float32Array, "logIncrement"),
      log_psi: column(Float32Array, "logPsi"),
      log_p: column(Float32Array, "logP"),
      log_q: column(Float32Array, "logP"),
      tokens: Uint16Array.from(tokens),
    };
    const facts = { id, first: page * size, steps: part.length, known, texts: texts.slice(known), table_width: 0 };
    out[`page${page}`] = part.length ? pack(facts, columns) : new DataView(new ArrayBuffer(0));
  }
  const last = rows.at(-1);
  out.header = {
    id, num_particles: particles, num_steps: steps, steps_done: rows.length, page_steps: size, run: 0,
    runs: [String(last.logZ)], prompt, target: describe(potential), ess_threshold: 0.5,
    exact_log_z: null, replicates: null, has_twist: true, eos: places.get(0) ?? -1,
    facts: ["proposal: base model", "twist: φ of the text so far", "systematic resampling when ESS < 0.5 K", `seed ${seed}`],
    ...(rows.length === steps ? samples(last) : { samples: [], num_texts: 0 }),
  };
  return out;
}

/** The heaviest final texts, equal ones together. */
function samples({ texts, weights, logPsi }) {
  const found = new Map();
  texts.forEach((ids, k) => {
    const text = words.decode(ids);
    const entry = found.get(text) ?? { text, copies: 0, slot: k, weight: 0, log_phi: String(logPsi[k]) };
    found.set(text, Object.assign(entry, { copies: entry.copies + 1, weight: entry.weight + weights[k] }));
  });
  const all = [...found.values()].sort((a, b) => b.weight - a.weight);
  return { samples: all.slice(0, 60), num_texts: all.length };
}

/** Run what is asked, a step at a time; a later run stops this one. */
async function play() {
  const id = ++runs;
  const rows = [];
  note.textContent = "";
  try {
    const ask = asked();
    const start = performance.now();
    for (const row of run(models3, ask)) {
      rows.push(row);
      models[0].update(traits(id, ask, rows));
      models[0].set("status", { state: "running", text: `step ${row.t} of ${ask.steps}` });
      await new Promise((resume) => setTimeout(resume));
      if (id !== runs) return;
    }
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    const logZ = rows.at(-1).logZ.toFixed(2).replace("-", "−");
    note.textContent = `log Ẑ = ${logZ} nats: an estimate by one run, computed here in ${seconds} s.`;
    models[0].set("status", { state: "done", text: "" });
  } catch (error) {
    note.textContent = error.message;
    models[0].set("status", { state: "done", text: "" });
  }
  document.body.dataset.runs = String(id);
}

form.addEventListener("submit", (event) => (event.preventDefault(), play()));
form.addEventListener("change", play);
for (const name of ["beta", "particles", "steps"]) {
  const show = () => (form.querySelector(`output[for=${name}]`).textContent = form.elements[name].value);
  form.elements[name].addEventListener("input", show);
  show();
}
play();
