"""Every method in one format: what it samples from, what it says of log Z, what it costs."""

import math

import pytest
import torch
from smc.toys import chain, eos_target, table_target, z_score

import tsmc_widgets as tw
from tsmc_widgets.evaluation import BASELINES, run_baseline, summary_frame
from tsmc_widgets.twists import TableTwist

SAMPLERS = ("rejection", "p0, SIS", "p0, SMC", "twist, SIS", "twist, SMC", "optimal twist")


def make_target(seed=11):
    target = table_target(3, 4, seed=seed)
    target.potential.log_phi_max = float(target.potential.log_table.max())
    return target


@pytest.fixture(scope="module")
def target():
    return make_target()


def options(name, twist):
    return {"twist": twist} if name in ("p0, SMC", "twist, SIS", "twist, SMC") else {}


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_samples_sigma_does(target, oracle, twist, name):
    """Z_hat times the weighted mean of f has mean Z E_sigma[f]."""
    more = options(name, twist)
    runs = {"max_draws": 10**6} if name == "rejection" else {"num_runs": 3000}
    count = 5000 if name == "rejection" else 4
    found = run_baseline(name, target, num_samples=count, seed=3, **runs, **more)
    first = (found.tokens[:, 0] == 1).double()
    truth = float(oracle.log_sigma.exp()[oracle.tokens[:, 0] == 1].sum())
    if name == "rejection":
        assert abs(z_score(first, truth)) < 4.5
        return
    trace_log_z = log_z_of_runs(name, target, twist, found)
    values = (found.weights * first).reshape(3000, 4).sum(1) * (trace_log_z - oracle.log_z).exp()
    if name == "optimal twist":
        assert abs(z_score((found.weights * first).reshape(3000, 4).sum(1), truth)) < 4.5
    else:
        assert abs(z_score(values, truth)) < 4.5


def log_z_of_runs(name, target, twist, found):
    if name == "optimal twist":
        return torch.full((3000,), found.log_z, dtype=torch.float64)
    how = {
        "p0, SIS": {"rule": "never"},
        "p0, SMC": {"twist": twist},
        "twist, SIS": {"proposal": tw.TwistInduced(twist), "rule": "never"},
        "twist, SMC": {"proposal": tw.TwistInduced(), "twist": twist},
    }[name]
    return tw.run_smc(target, num_particles=4, num_runs=3000, seed=3, **how).log_z


def test_the_optimal_twist_is_exact(target, oracle):
    found = run_baseline("optimal twist", target, num_samples=20)
    assert found.log_z == oracle.log_z
    assert found.ess == pytest.approx(20)
    assert found.log_z_kind == "exact"


def test_best_of_n_is_the_best_of_n(target, oracle):
    """P(best = s) = F(phi(s))^n - F(below)^n, by enumeration; it is not sigma."""
    n = 5
    found = run_baseline("best-of-n", target, num_samples=4000, seed=1, n=n)
    order = oracle.log_phi.argsort()
    upto = oracle.log_p.exp()[order].cumsum(0)
    chance = upto**n - torch.cat([torch.zeros(1).double(), upto[:-1]]) ** n
    mean = float((chance * oracle.log_phi[order]).sum())
    assert abs(z_score(found.log_phi, mean)) < 4.5
    assert abs(found.log_z - oracle.log_z) < 4.5 * found.log_z_standard_error
    assert "not sigma" in found.samples_from


@pytest.mark.parametrize("make", [make_target, eos_target])
def test_a_beam_as_wide_as_all_texts_finds_them(make):
    target = make()
    oracle = tw.exact(target)
    found = run_baseline("beam", target, num_samples=len(oracle.tokens))
    assert found.log_z == pytest.approx(oracle.log_z, abs=1e-10)
    assert len(found.tokens.unique(dim=0)) == len(oracle.tokens)


@pytest.mark.parametrize("width", [1, 3, 10])
@pytest.mark.parametrize("make", [make_target, eos_target])
def test_a_beam_bounds_log_z_for_certain(make, width):
    target = make()
    oracle = tw.exact(target)
    for twist in (None, oracle.optimal_twist()):
        found = run_baseline("beam", target, num_samples=width, twist=twist)
        assert found.log_z <= oracle.log_z + 1e-12
        best = oracle.tokens[(oracle.log_p + oracle.log_phi).argmax()]
        log_p = target.log_p(found.tokens)
        assert torch.allclose(found.log_p, log_p, rtol=0, atol=1e-12)
        assert torch.equal(found.log_phi, target.log_phi(found.tokens))
    if width == 10:
        assert bool((found.tokens == best).all(1).any())


def test_a_beam_without_hits_is_empty():
    rare = tw.Target(chain(), tw.MatchesRegex("c{7}"), prompt="a", num_steps=7)
    found = run_baseline("beam", rare, num_samples=2)
    assert (len(found.tokens), found.log_z) == (0, -math.inf)
    assert math.isnan(found.mean_log_phi)


class CountingLM:
    """Counts the tokens that a model reads."""

    def __init__(self, lm):
        self.lm, self.read = lm, 0

    def __getattr__(self, name):
        return getattr(self.lm, name)

    def prefill(self, tokens):
        self.read += tokens.numel()
        return self.lm.prefill(tokens)

    def advance(self, tokens, carry):
        self.read += len(tokens)
        return self.lm.advance(tokens, carry)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"optimal twist"}))
def test_the_cost_is_what_the_model_reads(name):
    lm = CountingLM(chain())
    phi = tw.TokenFunction(lambda rows: -0.5 * rows.sum(1), log_phi_max=0.0)
    target = tw.Target(lm, phi, prompt="ab", num_steps=4)
    twist = TableTwist.random(3, 4, seed=12, prompt_length=2)
    found = run_baseline(name, target, num_samples=40, **options(name, twist))
    prompts = lm.read - found.forward_tokens
    # Rejection reads the prompt again for each batch of draws, and that is all.
    assert prompts % 2 == 0
    assert 0 <= prompts <= (20 if name == "rejection" else 0)


def test_the_table_has_a_row_for_each(target, twist):
    runs = [
        run_baseline(name, target, num_samples=8, seed=1, **options(name, twist))
        for name in BASELINES
    ]
    frame = summary_frame(runs)
    assert list(frame["method"]) == list(BASELINES)
    assert frame["samples_from"].str.len().min() > 10
    assert (frame["forward_tokens"] > 0).all()
    assert (frame["seconds"] > 0).all()
    texts = runs[0].to_frame(target)
    assert list(texts.columns) == ["method", "run", "text", "weight", "log_phi", "log_p"]
    assert texts["weight"].sum() == pytest.approx(1.0)


def test_a_budget_that_ends_and_runs_that_die_are_noted():
    rare = tw.Target(chain(), tw.MatchesRegex("c{5}"), prompt="a", num_steps=5)
    found = run_baseline("rejection", rare, num_samples=50, max_draws=100)
    assert "100 draws" in found.note
    died = run_baseline("p0, SIS", rare, num_samples=2, num_runs=3)
    assert died.note.endswith("of 3 runs died")
    assert died.log_z == -math.inf


def test_what_is_missing_is_named(target):
    with pytest.raises(ValueError, match="needs a twist"):
        run_baseline("twist, SMC", target, num_samples=3)
    with pytest.raises(ValueError, match="name must be one of rejection"):
        run_baseline("magic", target, num_samples=3)
