"""A made-up run, and the view's script in a browser page without Jupyter."""

import base64
from contextlib import ExitStack, closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.genealogy import paths
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.record import NUM_PAGES, unpack
from tsmc_widgets.widgets.session import leave_a_core
from view_support import RESTED, SEND, draw_after

SECONDS = 60
SENTENCE = (
    "I bought this book lamp and it was great broken . the a very nice happy seller quickly "
    "arrived yesterday terrible ! , because my daughter loved"
)
WORDS = [
    *SENTENCE.split(),
    "<script>globalThis.hacked=1</script>",
    "<img/src=x/onerror=globalThis.hacked=1>",
    "\n",
    "\t",
    " ",
]

EVIL = [
    "</script><script>globalThis.hacked=1</script>",
    '<img/src=x/onerror="hacked=1">',
    "日本\n,b",
]

FAKE_MODEL = """
globalThis.makeModel = state => ({
  state, sent: 0, handlers: {},
  get(name) { return this.state[name]; },
  set(name, value) {
    this.state[name] = value;
    (this.handlers['change:' + name] || []).forEach(act => act());
  },
  save_changes() { this.sent += 1; },
  on(name, act) { (this.handlers[name] ??= []).push(act); },
  off(name, act) { this.handlers[name] = (this.handlers[name] || []).filter(a => a !== act); },
});
globalThis.bytes = text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
globalThis.revive = state => Object.fromEntries(Object.entries(state).map(
  ([name, value]) => [name, value?.base64 === undefined ? value : bytes(value.base64)]));
globalThis.show = async ([esm, css, state]) => {
  const empty = { step: 0, hold: false, more: 0, hello: 0, welcome: 0 };
  globalThis.model = makeModel({ ...empty, ...revive(state) });
  const style = document.createElement('style');
  style.textContent = css;
  document.head.append(style);
  const url = URL.createObjectURL(new Blob([esm], { type: 'text/javascript' }));
  const el = document.createElement('div');
  document.body.append(el);
  globalThis.abort = new AbortController();
  globalThis.widget = (await import(url)).default;
  globalThis.cleanup = widget.render({ model, el, signal: abort.signal });
  globalThis.root = el.querySelector('.pv');
};
"""


def build_trace(
    K=64, T=24, *, done=None, seed=0, threshold=0.5, dead_at=(), all_dead_at=None, num_runs=1
):
    """An SMCTrace of random numbers."""
    rng = np.random.default_rng(seed)
    done = T if done is None else done
    shape = (num_runs, T, K)
    increments = rng.normal(0, 0.6, shape)
    for step in dead_at:
        increments[:, step - 1, ::3] = -np.inf
    if all_dead_at is not None:
        increments[:, all_dead_at - 1] = -np.inf
    finite = np.where(np.isfinite(increments), increments, -3.0)
    log_p = -rng.gamma(2, 1.2, shape)
    columns = SimpleNamespace(
        **weigh(increments, threshold, rng),
        tokens=rng.integers(0, len(WORDS), shape),
        log_p=log_p,
        log_q=log_p,
        log_psi=np.where(np.isfinite(increments), np.cumsum(finite, axis=1), -np.inf),
        log_increment=increments,
    )
    # Cut, so that runs of one seed are one run, more or less grown.
    columns = SimpleNamespace(**{name: each[:, :done] for name, each in vars(columns).items()})
    attributes = {
        "columns": columns,
        "num_particles": K,
        "num_steps": T,
        "num_runs": num_runs,
        "steps_done": done,
        "prompt": "I bought this",
        "token_texts": dict(enumerate(WORDS)),
        "final_texts": texts(columns),
        "tables": [],
        "info": SimpleNamespace(
            potential='avoids "broken" × p(5 stars | text)^2',
            proposal="base model",
            twist=None,
            resampler="systematic",
            rule=f"ESS < {threshold:g} K",
            ess_threshold=threshold,
            conditional=False,
            observed=None,
            seed=seed,
            eos_token_id=None,
        ),
    }
    # Class attributes, which stand in place of the properties of the true class.
    attributes["__setattr__"] = object.__setattr__
    return object.__new__(type("BuiltTrace", (SMCTrace,), attributes))


def weigh(increments, threshold, rng):
    """Weights, resampling and what follows from them."""
    runs, done, K = increments.shape
    ancestors = np.tile(np.arange(K), (runs, done, 1))
    log_weights, resampled = np.zeros(increments.shape), np.zeros((runs, done), dtype=bool)
    ess, log_z = np.zeros((runs, done)), np.zeros((runs, done))
    for run in range(runs):
        before, total = np.zeros(K), 0.0
        for step in range(done):
            share = normalise(before)
            if not share.any():
                break
            if step and 0 < 1 / (share**2).sum() < threshold * K:
                resampled[run, step] = True
                places = (rng.random() + np.arange(K)) / K
                found = np.searchsorted(np.cumsum(share), places)
                ancestors[run, step] = np.minimum(found, K - 1)
                before = np.zeros(K)
            after = before + increments[run, step]
            total += np.logaddexp.reduce(after) - np.logaddexp.reduce(before)
            squares = (normalise(after) ** 2).sum()
            ess[run, step] = 1 / squares if squares else 0.0
            log_weights[run, step], log_z[run, step], before = after, total, after
    return {
        "ancestors": ancestors,
        "log_weights": log_weights,
        "resampled": resampled,
        "ess": ess,
        "log_z": log_z,
    }


def normalise(log_weights):
    top = log_weights.max()
    weights = np.exp(log_weights - top) if np.isfinite(top) else np.zeros(len(log_weights))
    return weights / (weights.sum() or 1.0)


def texts(columns):
    tokens = paths(*map(torch.from_numpy, (columns.ancestors, columns.tokens))).tolist()
    return [[" ".join(WORDS[token] for token in path) for path in run] for run in tokens]


def settle(page):
    """Wait until what a live page runs has ended, and was shown."""
    assert page.wait(SECONDS)
    assert page.live.publish_error is None


def press(page, act):
    """Press a button of a live page; what is said against it."""
    page.view.ask = {"act": act, "n": page.view.ask.get("n", 0) + 1}
    return page.view.status.get("error")


def pages_of(encoded):
    """The pages of an encoded run, or of the state of a view."""
    return [encoded[f"page{i}"] for i in range(NUM_PAGES)]


def column(encoded, name):
    """A column of all pages together."""
    return np.concatenate([unpack(page)[1][name] for page in pages_of(encoded) if page])


def traits_of(view):
    """What a front end is told of a run; bytes as base64."""
    pages = [base64.b64encode(page).decode() for page in pages_of(view.get_state())]
    coded = {f"page{i}": {"base64": page} for i, page in enumerate(pages)}
    return {"header": view.header, "run": view.run, **coded}


@pytest.fixture
def send(page):
    """Function that tells the page of another run, or of the same one grown."""

    def tell(view):
        draw_after(page, lambda: page.evaluate(SEND, traits_of(view)))

    return tell


@pytest.fixture
def opened():
    """Function that opens a live page, closed at the end, once its first run has ended."""
    with ExitStack() as pages:

        def make(kind, *args, **options):
            page = pages.enter_context(closing(kind(*args, **options)))
            settle(page)
            return page

        yield make


@pytest.fixture
def make_trace():
    """Function that makes up a run, see ``build_trace``."""
    return build_trace


@pytest.fixture
def open_state(page):
    """Function that shows a widget or its class with a state in a blank page, once drawn."""

    def show(widget, state, drawn="root._stats.renders > 0"):
        page.set_content("<!doctype html><html><body></body></html>")
        page.add_script_tag(content=FAKE_MODEL)
        page.evaluate("show", [widget._esm, widget._css, state])
        page.wait_for_function(drawn)
        return page

    return show


@pytest.fixture
def open_view(open_state):
    """The same for a ParticleView, once it rests."""
    return lambda view, *, status=None: open_state(
        view, traits_of(view) | {"status": status or {}}, RESTED
    )


@pytest.fixture
def open_trace(open_view):
    """The same for a made-up run, given as ``make_trace`` takes it."""
    return lambda *, status=None, **shape: open_view(
        ParticleView(build_trace(**shape)), status=status
    )


@pytest.fixture
def open_panels(open_state):
    """The same for RunPanels."""

    def show(panels):
        samples = {"base64": base64.b64encode(panels.samples).decode()}
        return open_state(panels, traits_of(panels) | {"samples": samples, "group": panels.group})

    return show


@pytest.fixture(scope="session")
def evil_target():
    """Every text in it tries to be HTML, the prompt and the potential's name as well."""
    rows = [[0.2, 0.4, 0.4], [0.4, 0.2, 0.4], [0.4, 0.4, 0.2]]
    lm = TabularLM.markov([0.4, 0.3, 0.3], rows, symbols=EVIL, separator=" ")
    potential = tw.AvoidsToken(EVIL[0]) * tw.ContainsToken(EVIL[1])
    return tw.Target(lm, potential, prompt=EVIL[2], num_steps=4)


@pytest.fixture(scope="session")
def evil_trace(evil_target):
    """Six runs of it, some of their particles dead."""
    return tw.run_smc(evil_target, num_particles=32, num_runs=6, seed=2, dead_runs="keep", top_k=3)


@pytest.fixture
def visit(page, tmp_path):
    """Function that writes a view, opens the file offline and lists the requests it made."""

    def open_file(shown, **options):
        requests = []
        page.context.set_offline(True)
        page.on("request", lambda request: requests.append(request.url))
        path = shown.to_html(tmp_path / "run.html", **options)
        page.goto(path.as_uri())
        # The page's policy forbids what wait_for_function does: wait on what is to be seen.
        page.locator(".pv-row").first.wait_for(state="attached")
        return path, requests

    return open_file


@pytest.fixture
def page_threads():
    """As many threads here as a page computes on: sums of others may end in other digits."""
    threads = torch.get_num_threads()
    leave_a_core()
    yield
    torch.set_num_threads(threads)
