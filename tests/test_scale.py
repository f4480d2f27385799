"""A constant in log phi moves log Z, and psi with it, by itself and changes nothing else.

Every part of the package that takes a potential is a function here from a target to what it says:
numbers that stay as they are, and numbers that move with log phi.
"""

import functools
import math
from dataclasses import asdict, dataclass, field
from functools import partial

import pandas as pd
import pytest
import torch
from evaluation.enumerated import divergences as exact_divergences
from evaluation.enumerated import log_q_of_all, twist_psi
from learning.trainers import parameters, shifted, trained
from smc.observed import ConditionalTables, infilling
from smc.toys import TablePhi, chain, table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import (
    BASELINES,
    BracketSearch,
    compare_log_psi,
    estimate_step_divergences,
    factor_breakdown,
    increment_variance,
    kl_divergences,
    log_z_bounds,
    pick_prefixes,
    profiles,
    roll_out,
    run_baseline,
    run_diagnostics,
    step_divergences,
)
from tsmc_widgets.evaluation.estimates import PooledOverRuns
from tsmc_widgets.learning import TwistTrainer
from tsmc_widgets.learning.conditional import JointPositives, RetainedPositives
from tsmc_widgets.learning.objectives import (
    METHODS,
    RECIPES,
    link_for,
    reads_positives,
    resolve_method,
)
from tsmc_widgets.learning.positives import WeightedPositives
from tsmc_widgets.numerics import normalise
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.smc.resampling import RULES, SCHEMES
from tsmc_widgets.targets.exact_samples import ExactDraws

CONSTANTS = (-1e4, 1e4)


def table(c):
    """A random table under a model in float32, a third of it zero."""
    target = table_target(3, 4, seed=6, zeros=0.3)
    target.lm._log_tables = [rows.float() for rows in target.lm._log_tables]
    phi = TablePhi(target.potential.log_table + c)
    phi.log_phi_max = float(phi.log_table.max()) + 1.0
    return tw.Target(target.lm, phi, prompt="", num_steps=4)


def ends(c):
    """Sequences that may end early, and a factor that looks ahead beside one that looks back."""
    worth = torch.tensor([-0.4, 0.7, -9.0], dtype=torch.float64)
    weigh = tw.TokenFunction(lambda s: worth[s].sum(-1) + c, log_phi_max=4.0 + c)
    phi = weigh * tw.ContainsToken("b")
    return tw.Target(chain(eos="c"), phi, prompt="ab", num_steps=4, eos="absorb")


def indicator(c):
    """Phi is 0 or exp(c), and only sequences of which p0 writes one in nine have it."""
    phi = tw.MatchesRegex(".*cc") * tw.Constant(c)
    return tw.Target(chain(), phi, prompt="a", num_steps=4)


TARGETS = {make.__name__: make for make in (table, ends, indicator)}


@dataclass
class Said:
    """Numbers by name: ``same`` ones, and those that are ``moved`` by the constant."""

    same: dict = field(default_factory=dict)
    moved: dict = field(default_factory=dict)

    def put(self, name, same, moved=()):
        """Take tensors, numbers, or columns of a table, of which ``moved`` are those that move."""
        if isinstance(same, pd.DataFrame):
            moved = {each: same[each] for each in same if each in moved}
            same = {each: same[each] for each in same if each not in moved}
        self.same |= {f"{name} {key}": value for key, value in dict(same).items()}
        self.moved |= {f"{name} {key}": value for key, value in dict(moved).items()}


def values(found):
    """As a tensor; a column of words as a list."""
    if isinstance(found, pd.Series):
        words = not pd.api.types.is_numeric_dtype(found)
        return found.tolist() if words else torch.tensor(found.to_numpy(float))
    return found if isinstance(found, torch.Tensor) else torch.tensor(found, dtype=torch.float64)


def assert_moved_by(c, found, plain):
    """The same numbers; those that move less ``c``. A tensor of integers must be the same."""
    for name, expected in (plain.same | plain.moved).items():
        a, b = values((found.same | found.moved)[name]), values(expected)
        if isinstance(a, list):
            assert a == b, name
            continue
        if name in plain.moved:
            a = a - c
        said = f"{name}: {a} in place of {b}"
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7, equal_nan=True, msg=said)


def traced(trace):
    columns = trace.columns
    same = {
        name: getattr(columns, name)
        for name in ("tokens", "ancestors", "resampled", "log_p", "log_q", "ess")
    }
    same["weights"] = normalise(columns.log_weights)
    return same, {"log_z": columns.log_z, "log_psi": columns.log_psi}


def run(target, said):
    twist, other = tw.LookAheadTwist(target), tw.TabularLM.random(3, 6, seed=9)
    for resampler in SCHEMES:
        for rule in RULES:
            model = [tw.ModelProposal(other)] if rule == "never" else []
            for proposal in (tw.Base(), tw.TwistInduced(), *model):
                how = {"num_particles": 5, "num_runs": 3, "dead_runs": "keep"}
                how |= {"resampler": resampler, "rule": rule, "proposal": proposal}
                trace = tw.run_smc(target, twist=twist, **how)
                said.put(f"{resampler} {rule} {proposal.describe()}", *traced(trace))


def conditional_run(target, said):
    retained = tw.exact(target).sample(6, 0)
    for twist in (None, tw.exact(target).optimal_twist()):
        # Where a sequence may end early, phi stands beside psi = 1, which does not move with it.
        for rule in ("never",) if target.absorbs_eos and twist is None else RULES:
            proposal = tw.Base() if twist is None else tw.TwistInduced()
            how = {"num_particles": 4, "rule": rule, "proposal": proposal}
            trace = tw.run_conditional_smc(target, retained=retained, twist=twist, **how)
            same, moved = traced(trace)
            if twist is None:
                # Psi = 1 before the end, whatever phi is.
                same, moved = ({n: v[:, -1] for n, v in each.items()} for each in (same, moved))
            said.put(f"{rule} {twist is None}", same, moved)


def oracles(target, said):
    for oracle in (tw.exact(target), EnumeratedOracle(target)):
        whole = EnumeratedOracle(target)
        prompt = target.prompt_tokens.expand(len(whole.tokens), -1)
        log_psi = oracle.optimal_twist().log_psi(
            torch.cat([prompt, whole.tokens], 1), prompt.shape[1]
        )
        same = {
            "sample": oracle.sample(20, 1),
            "sigma": whole.log_sigma,
            "marginals": torch.cat(list(oracle.marginals())),
        }
        said.put(type(oracle).__name__, same, {"log_z": oracle.log_z, "psi": log_psi})


def exact_samples(target, said):
    found = target.exact_samples(30, seed=2, progress=False)
    same = {name: getattr(found, name) for name in ("tokens", "proposed", "accepted")}
    same["error"] = found.log_z_standard_error
    said.put("rejection", same, {"log_z": found.log_z, "log_phi": found.log_phi})
    draws = ExactDraws(target, 4, block=50)
    for _ in range(4):
        draws.extend()
    value, error = draws.log_z
    said.put("blocks", {"tokens": draws.tokens, "error": error}, {"log_z": value})


def bounds(target, said):
    samples, twist = tw.exact(target).sample(7, 0), tw.LookAheadTwist(target)
    moved = ("mean", "low", "high", "pooled", "pooled_low", "pooled_high", "certified")
    found = log_z_bounds(
        target, num_particles=[1, 6], num_runs=8, exact_samples=samples, twist=twist
    )
    said.put("bounds", found.to_frame(), moved)
    said.put("gap", found.gap_frame())


def divergences(target, said):
    oracle, twist = tw.exact(target), tw.LookAheadTwist(target)
    rejected = target.exact_samples(30, seed=2, progress=False)
    two = log_z_bounds(
        target, num_particles=9, num_runs=8, exact_samples=oracle.sample(9, 3), twist=twist
    )
    known = {"oracle": oracle, "rejection": rejected, "bounds": two}
    for name, log_z in known.items() if math.isfinite(two.gap) else [*known.items()][:2]:
        found = kl_divergences(
            target, twist=twist, num_samples=60, exact_samples=rejected, log_z=log_z
        )
        said.put(name, found.to_frame(), ("log_z",))
        shapes = {f"k {kl.divergence}": kl.k_hat for kl in found.all()}
        said.put(name, shapes, {"f": found.f.mean, "g": found.g.mean, "phi": found.log_phi.mean})


def baselines(target, said):
    for name in BASELINES:
        needs = "SMC" in name or name.startswith("twist")
        options = {"twist": tw.LookAheadTwist(target)} if needs else {}
        found = run_baseline(name, target, num_samples=6, **options)
        same = {each: getattr(found, each) for each in ("tokens", "weights", "ess", "log_p")}
        same |= {"error": found.log_z_standard_error, "read": found.forward_tokens}
        moved = {"log_z": found.log_z, "mean": found.mean_log_phi, "phi": found.log_phi}
        said.put(name, same, moved)


def bracket(target, said):
    for at, found in enumerate(BracketSearch(target, batch_size=2, fanout=2)):
        same = asdict(found)
        moved = {name: same.pop(name) for name in ("lower", "upper")}
        said.put(f"{at}", same, moved)


def factors(target, said):
    for twist in (tw.LookAheadTwist(target),) if target.absorbs_eos else (None,):
        trace = tw.run_smc(target, num_particles=40, twist=twist)
        parts = factor_breakdown(trace, target)
        same = {f"{i}": (part.killed, part.killed_alone) for i, part in enumerate(parts)}
        moved = {"mean": math.fsum(part.mean_log_phi for part in parts)}
        said.put(f"{twist is None}", same, moved)


def twist_quality(target, said):
    oracle, twist = EnumeratedOracle(target), tw.LookAheadTwist(target)
    samples = oracle.sample(12, 0)
    prefixes = pick_prefixes(target, samples, seed=0, rollouts=6)
    for place in range(prefixes.size):
        roll_out(target, prefixes, place, seed=0, rollouts=6)
    said.put("rolled", {"error": prefixes.error}, {"log_psi": prefixes.log_psi})
    compared = compare_log_psi(target, twist, prefixes)
    said.put("compared", compared.frame)
    said.put("compared", compared.summary())
    said.put("compared", {"reliability": compared.reliability})
    said.put("steps", step_divergences(target, twist, oracle))
    few = {"num_particles": 9, "num_runs": 8, "rollouts": 6}
    said.put("steps", estimate_step_divergences(target, twist, samples, log_z=oracle, **few))
    how = {"num_particles": 30, "num_runs": 4, "resampler": "multinomial", "dead_runs": "keep"}
    trace = tw.run_smc(target, twist=twist, **how)
    said.put("increments", increment_variance(trace))
    said.put("profiles", profiles(trace))
    said.put("runs", run_diagnostics(trace), ("log_z",))


READERS = (
    run, conditional_run, oracles, exact_samples, bounds, divergences, baselines, bracket, factors,
    twist_quality,
)  # fmt: skip


def said_of(read, name, c):
    said = Said()
    read(TARGETS[name](c), said)
    return said


@functools.cache
def plain_of(read, name):
    return said_of(read, name, 0.0)


@pytest.mark.parametrize("c", CONSTANTS)
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_constant_in_log_phi_moves_log_z_alone(read, name, c):
    assert_moved_by(c, said_of(read, name, c), plain_of(read, name))


def drawn(trainer):
    """Log psi along some sequences, under an observation for each where the twist takes one."""
    target = trainer.target
    tokens = torch.cartesian_prod(*[torch.arange(3)] * target.num_steps)
    observed = {"observed": tokens[:, :1]} if target.is_conditional else {}
    return trainer.twist.log_psi(tokens, 0, **observed).detach()


class ScaledInfilling(tw.Infilling, kind=False):
    """exp(c) p(o | s): waits for its observation as p(o | s) does, and has the same joint draws."""

    def __init__(self, c):
        super().__init__(num_tokens=1)
        self.log_phi_max = c

    def log_phi_given(self, tokens, observed):
        return super().log_phi_given(tokens, observed) + self.log_phi_max


def trained_given(c, method, positives):
    plain = infilling()
    target = tw.Target(plain.lm, ScaledInfilling(c), prompt="", num_steps=plain.num_steps)
    trainer = TwistTrainer(
        target,
        ConditionalTables(link=link_for(method)),
        method=method,
        batch_size=24,
        observations=8,
        learning_rate=0.05,
        positives=positives,
    )
    list(trainer.updates(8))
    return trainer


SOURCES = {
    **{name: partial(trained, source=name) for name in ("replayed", "one batch", "exact")},
    "joint": partial(trained_given, positives=JointPositives()),
    "retained": partial(trained_given, positives=RetainedPositives(3)),
    "weighted": partial(trained_given, positives=WeightedPositives()),
}
TRAININGS = [
    (method, source)
    for method in METHODS
    for source in SOURCES
    if reads_positives(resolve_method(method)) or source in ("replayed", "joint")
]


@functools.cache
def trained_from(method, source, c):
    if source in ("joint", "retained", "weighted"):
        return SOURCES[source](c, method=method)
    target = shifted(c)
    target.potential.log_table[1:, 1] = -math.inf
    return SOURCES[source](target, method=method)


@pytest.mark.parametrize("c", CONSTANTS)
@pytest.mark.parametrize(("method", "source"), TRAININGS)
def test_a_constant_in_log_phi_moves_what_is_learned_as_a_whole(method, source, c):
    found, plain = (trained_from(method, source, each) for each in (c, 0.0))
    weights = resolve_method(method)
    # Path consistency starts where its gradients are rounding, which Adam divides by itself.
    near = {"rtol": 0, "atol": 1e-3 if any("rl" in name for name in weights) else 1e-6}
    torch.testing.assert_close(parameters(found), parameters(plain), **near)
    moved = c if any(RECIPES[name].reads_phi for name in weights) else 0.0
    assert found.twist.level - plain.twist.level == pytest.approx(moved, abs=1e-9)
    torch.testing.assert_close(drawn(found), drawn(plain) + moved, **near)


def estimated(name, c):
    """What is unbiased for 1, divided by its truth, and (estimate, truth, error) of the others."""
    target = TARGETS[name](c)
    oracle, twist = EnumeratedOracle(target), tw.LookAheadTwist(target)
    how = {"num_particles": 6, "rule": "always", "twist": twist, "seed": 1}
    ahead = tw.run_smc(target, num_runs=6000, resampler="multinomial", dead_runs="keep", **how)
    ratio = (ahead.log_z - oracle.log_z).exp()
    retained = oracle.sample(6000, 2)
    # A run that may die lowers the mean of 1 / Z_hat to the share of runs that survive.
    back = (oracle.log_z - tw.run_conditional_smc(target, retained=retained, **how).log_z).exp()
    means = {"Z_hat": (ratio, 1.0), "1 / Z_hat": (back, ratio > 0)}
    # What single runs say of their variance is that of all.
    told = ratio**2 * torch.nan_to_num(ahead.log_z_variance())
    means["variance"] = (told - (ratio - 1) ** 2, 0.0)
    rejected = target.exact_samples(400, seed=3, progress=False)
    blocks = ExactDraws(target, 4, block=500)
    for _ in range(4):
        blocks.extend()
    steep = tw.exact(target.with_potential(target.potential**0.5))
    found = kl_divergences(
        target, twist=steep.optimal_twist(), num_samples=1500, exact_samples=rejected
    )
    log_q = log_q_of_all(target, oracle, twist_psi(target, oracle, steep.optimal_twist()))
    forward, backward = exact_divergences(oracle, log_q)
    pooled = {"pooled": PooledOverRuns.of(ahead.log_z)}
    if not (back == 0).any() and (ratio > 0).all():
        pooled["pooled, above"] = PooledOverRuns.of(oracle.log_z - back.log(), reciprocal=True)
    others = {name: (p.value, oracle.log_z, p.standard_error) for name, p in pooled.items()}
    others |= {
        "rejection": (rejected.log_z, oracle.log_z, rejected.log_z_standard_error),
        "blocks": (blocks.log_z[0], oracle.log_z, blocks.log_z[1]),
        "KL(q||σ)": (found.q_sigma.value, forward, found.q_sigma.standard_error),
        "KL(σ||q)": (found.sigma_q.value, backward, found.sigma_q.standard_error),
    }
    return means, others | rolled(target, oracle)


def rolled(target, oracle):
    """Psi* of prefixes by rollouts, as shares of the truth; divergences of single steps."""
    prefixes = pick_prefixes(target, oracle.sample(12, 0), seed=0, rollouts=100)
    for place in range(prefixes.size):
        roll_out(target, prefixes, place, seed=0, rollouts=100)
    optimal = tw.exact(target).optimal_twist()
    log_psi = optimal.log_psi(target.after_prompt(prefixes.tokens), len(target.prompt_tokens))
    truth = log_psi.double()[prefixes.row, prefixes.step - 1]
    told = {}
    for place in range(prefixes.size):
        if math.isfinite(truth[place]) and math.isfinite(prefixes.log_psi[place]):
            share = math.exp(prefixes.log_psi[place] - truth[place])
            told[f"psi* {place}"] = (share, 1.0, share * float(prefixes.error[place]))
        else:
            # No rollout had phi > 0: likely where psi* is a small share of exp(log_phi_max).
            assert prefixes.log_psi[place] == -math.inf
    twist = tw.LookAheadTwist(target)
    exactly = step_divergences(target, twist, oracle)["value"]
    found = estimate_step_divergences(
        target, twist, oracle.sample(100, 5), log_z=oracle, num_runs=100, rollouts=50
    )
    for at, (value, low, high) in enumerate(zip(found.value, found.low, found.high, strict=True)):
        # ``low`` and ``high`` are 1.96 errors from both sides of the middle, and more.
        told[f"divergence {at + 1}"] = (value, exactly[at], (high - low) / 2 / 1.96)
    return told


@pytest.mark.parametrize("c", [0.0, -300.0, 300.0])
@pytest.mark.parametrize("name", TARGETS)
def test_estimates_are_right_at_every_scale(name, c):
    """Each against enumeration, by |z| < 4.5: positive and zero phi, with and without EOS."""
    means, others = estimated(name, c)
    for what, (values, truth) in means.items():
        spread = float(values.std()) / len(values) ** 0.5
        if isinstance(truth, torch.Tensor):
            spread = math.hypot(spread, float(truth.double().std()) / len(truth) ** 0.5)
            truth = float(truth.double().mean())
        assert abs(float(values.mean()) - truth) < 4.5 * spread, what
    for what, (value, truth, error) in others.items():
        assert abs(value - truth) < 4.5 * error + 1e-7, what
