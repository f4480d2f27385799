"""The page without install: its run is Python's, token by token, on the same noise."""

from dataclasses import dataclass

import pytest
import torch

import tsmc_widgets as tw
from docs.browser import build
from tsmc_widgets.twists.protocol import SteppedTwist

pytestmark = pytest.mark.browser

FLOOR = -6.0
RECORD = """() => {
    const r = document.querySelector('.pv')._view.record;
    const names = ['tokens', 'ancestors', 'logIncrement', 'logP', 'logZ', 'ess', 'resampled'];
    const columns = names.map(name => [name, [...r[name]].map(String)]);
    return Object.fromEntries([...columns, ['words', r.texts]]);
}"""
# A field named "contains" would hide the form's method of this name.
FIELDS = {"contains": "with", "avoids": "without"}
CASES = {
    "stars": {"stars": 5, "beta": 4.0, "avoids": "broken", "contains": ""},
    "words": {"stars": 0, "beta": 1.0, "avoids": "great, good", "contains": "it"},
    "both": {"stars": 1, "beta": 8.0, "avoids": "", "contains": "it, my"},
}


@dataclass
class Written:
    """The tokens of each row so far."""

    tokens: torch.Tensor

    def select(self, rows):
        return Written(self.tokens[rows])


class LookBack(SteppedTwist):
    """The page's twist: phi of the text before the newest token, to the power t / 2T."""

    def __init__(self, target, stars, wanted, unwanted):
        self.target, self.stars, self.wanted, self.unwanted = target, stars, wanted, unwanted
        self.prompt_length = target.prompt_tokens.shape[0]

    def _start(self, tokens):
        return Written(torch.zeros(len(tokens), 0, dtype=torch.int64))

    def _read(self, tokens, carry):
        return Written(torch.cat([carry.tokens, tokens.unsqueeze(1)], 1))

    def _value(self, carry):
        carry = carry.tokens
        total = torch.zeros(len(carry), dtype=torch.float64)
        if self.stars is not None:
            total += self.stars.log_phi(carry).clamp(min=2 * FLOOR)
        for part in self.wanted + self.unwanted:
            total += FLOOR * (part.log_phi(carry) < 0)
        share = (carry.shape[1] + 1) / (2 * self.target.num_steps)
        return (share * total).unsqueeze(1).expand(-1, self.target.lm.vocab_size)


def words_of(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def python_run(stars, beta, avoids, contains, *, particles, steps, seed):
    lm = tw.load_language_model("storybook")
    wanted = [tw.ContainsWord(word) for word in words_of(contains)]
    unwanted = [tw.AvoidsWord(word) for word in words_of(avoids)]
    judge = [tw.ClassProbability("storybook/stars", label=stars) ** beta] if stars else []
    phi = tw.Constant()
    for part in (*wanted, *unwanted, *judge):
        phi = phi * part
    target = tw.Target(lm, phi, prompt="I bought this", num_steps=steps, eos="absorb")
    bound = [part.bind(target.context) for part in (*wanted, *unwanted, *judge)]
    count = len(wanted), len(wanted) + len(unwanted)
    twist = LookBack(
        target, bound[-1] if stars else None, bound[: count[0]], bound[count[0] : count[1]]
    )
    return tw.run_smc(target, twist=twist, num_particles=particles, seed=seed)


@pytest.fixture(scope="module")
def try_page(browser, tmp_path_factory):
    path = build.write(tmp_path_factory.mktemp("site") / "try.html")
    context = browser.new_context(offline=True)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-runs='1']", timeout=240_000)
    yield page
    context.close()
    assert problems == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_the_run_is_pythons(try_page, name):
    case, sizes = CASES[name], {"particles": 12, "steps": 12, "seed": 3}
    page, form = try_page, try_page.locator("#controls")
    before = int(page.get_attribute("body", "data-runs"))
    page.evaluate(
        """values => { const form = document.getElementById('controls');
        for (const [name, value] of Object.entries(values)) form.elements[name].value = value; }""",
        {FIELDS.get(name, name): str(value) for name, value in (case | sizes).items()},
    )
    form.get_by_role("button", name="Run").click()
    page.wait_for_selector(f"body[data-runs='{before + 1}']", timeout=240_000)
    found = page.evaluate(RECORD)
    trace = python_run(**case, **sizes)

    def column(key):
        return torch.tensor([float(value) for value in found[key]], dtype=torch.float64)

    shape = (sizes["steps"], sizes["particles"])
    expected = trace.columns
    assert column("resampled").bool().tolist() == expected.resampled[0].tolist()
    assert torch.equal(column("ancestors").reshape(shape).long(), expected.ancestors[0])
    texts = [found["words"][int(place)] for place in column("tokens")]
    lm = tw.load_language_model("storybook")
    assert texts == [lm.token_text(token) for token in expected.tokens[0].reshape(-1).tolist()]
    for key, values in (("logIncrement", expected.log_increment), ("logP", expected.log_p)):
        there = values[0].double()
        here = column(key).reshape(shape)
        assert torch.equal(here.isneginf(), there.isneginf())
        assert float((here - there).nan_to_num(0.0).abs().max()) < 1e-4
    assert float((column("logZ") - expected.log_z[0]).nan_to_num(0.0).abs().max()) < 1e-4
    assert float((column("ess") - expected.ess[0]).abs().max()) < 1e-3


def test_unknown_words_are_named(try_page):
    page = try_page
    page.locator("[name=prompt]").fill("I bought quantum chromodynamics")
    page.get_by_role("button", name="Run").click()
    page.get_by_text("storybook does not know: quantum, chromodynamics").wait_for()


def test_the_page_may_ask_nothing_of_anybody(tmp_path):
    text = build.write(tmp_path / "try.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "unsafe" not in text.partition("</head>")[0].partition("<style>")[0]
    scripts = ["storybook.js", "sampler.js", "page.js"]
    assert len((build.HERE / scripts[0]).read_text("utf-8").splitlines()) < 300
