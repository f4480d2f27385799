"""What is wrong with a twist, if anything: sentences with numbers, from measured thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import ModelOutputError, TsmcError, as_list, check_integer
from tsmc_widgets.evaluation.bellman import BellmanError, Population, bellman_error, run_twist
from tsmc_widgets.evaluation.diagnosis import Diagnosis, Finding, fit
from tsmc_widgets.evaluation.estimates import frame_of
from tsmc_widgets.evaluation.run_quality import increment_variance, profiles
from tsmc_widgets.evaluation.twist_quality import (
    ORACLE_BUDGET,
    bootstrap,
    estimate_step_divergences,
    psi_star,
    rank_correlation,
    reachable_oracle,
    step_divergences,
)
from tsmc_widgets.smc.api import check_observed
from tsmc_widgets.smc.exact import EnumeratedOracle, Oracle
from tsmc_widgets.smc.prefixes import prefill_steps
from tsmc_widgets.smc.proposals import Base
from tsmc_widgets.smc.trace import SMCTrace, check_trace
from tsmc_widgets.targets.context import finished
from tsmc_widgets.targets.target import Target, check_target, prompt_ids
from tsmc_widgets.twists.protocol import (
    BaseTwist,
    TwistStep,
    as_twist,
    of_other,
    prefill_twist,
    some_twist,
)

if TYPE_CHECKING:
    import pandas as pd

NUM_RUNS, NUM_PARTICLES = 8, 32
PARENTS, SIBLINGS, ROLLOUTS = 9, 4, 24
EXACT_PARENTS = 32
"""Where log psi* is known and need not be rolled out."""
MOST_STEPS = 10
FRAME = ("t", "parent", "token", "text", "log_psi", "log_star", "log_star_error")


@dataclass(frozen=True, slots=True)
class Family:
    """Some prefixes of t - 1 tokens, each with the same number of next tokens.

    Attributes:
        t: length of the siblings.
        tokens: of each sibling, from the first on.
        log_psi: of each; NaN where a parent has fewer next tokens that go on.
        log_star: log psi* of each, exact or rolled out; NaN until then, -inf where no rollout has
            phi > 0.
        error: standard error of ``log_star`` to first order; 0 where exact.
        observed: one observation for each parent.
    """

    t: int
    tokens: Int[Tensor, "parents siblings t"]
    log_psi: Float64[Tensor, "parents siblings"]
    log_star: Float64[Tensor, "parents siblings"]
    error: Float64[Tensor, "parents siblings"]
    observed: Int[Tensor, "parents width"] | None = None


def pick_families(
    target: Target,
    twist: Any,
    found: BellmanError,
    *,
    seed: int = 0,
    parents: int | None = None,
    siblings: int = SIBLINGS,
) -> list[Family]:
    """Families at up to ``MOST_STEPS`` steps before T, without log psi*.

    Parents are distinct prefixes of the population; their next tokens are drawn without
    replacement, half by p0 and half by p0 psi, from those that end nothing.
    """
    if parents is None:
        parents = PARENTS if reachable_oracle(target) is None else EXACT_PARENTS
    generator = torch.Generator().manual_seed(seed * 10_007 + 9_401)
    last = target.num_steps - 1
    families = []
    for t in torch.linspace(1, last, min(last, MOST_STEPS)).round().long().tolist():
        begun, seen = _parents(found, t - 1, parents, generator)
        if len(begun):
            more = parents * siblings // len(begun)
            families.append(_family(target, as_twist(twist), begun, seen, more, generator))
    return families


def _parents(
    found: BellmanError, t: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Distinct living prefixes of t tokens, and what is observed with each."""
    population: Population = found.population
    runs, _, size = population.tokens.shape
    alive = torch.ones(runs, size, dtype=torch.bool)
    if t:
        alive = ~found.log_psi[:, t - 1].isnan()
    living = alive.nonzero()
    places = living[torch.randperm(len(living), generator=generator)].tolist()
    rows: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for run, particle in places:
        tokens = population.prefix(run, t, particle)
        key = (*tokens, *([] if population.observed is None else population.observed[run].tolist()))
        rows.setdefault(key, (tokens, run))
        if len(rows) == count:
            break
    begun = torch.tensor([tokens for tokens, _ in rows.values()], dtype=torch.int64)
    begun = begun.reshape(len(rows), t)
    if population.observed is None:
        return begun, None
    return begun, population.observed[[run for _, run in rows.values()]]


@torch.no_grad()
def _family(
    target: Target,
    twist: Any,
    begun: Tensor,
    seen: Tensor | None,
    siblings: int,
    generator: torch.Generator,
) -> Family:
    begun = begun.to(target.lm.device)
    seen = None if seen is None else seen.to(begun.device)
    steps = prefill_steps(target, Base(), twist, begun, observed=seen, most_rows=len(begun))
    log_p, log_psi = (table.double().cpu() for table in steps.whole())
    q = numerics.normalise(log_p) + numerics.normalise(log_p + log_psi)
    if target.ending is not None:
        q[target.ending.next(begun).cpu()] = 0.0
    # Gumbel's trick: the largest of log q plus noise are draws without replacement.
    uniform = torch.rand(q.shape, generator=generator, dtype=torch.float64)
    best = (q.log() - (-uniform.log()).log()).topk(min(siblings, q.shape[1]), dim=1)
    own = log_psi.gather(1, best.indices)
    own = torch.where(torch.isneginf(best.values), math.nan, own)
    parent = begun.cpu().unsqueeze(1).expand(-1, best.indices.shape[1], -1)
    tokens = torch.cat([parent, best.indices.unsqueeze(-1)], dim=-1)
    blank = torch.full_like(own, math.nan)
    return Family(begun.shape[1] + 1, tokens, own, blank, blank, seen)


@torch.no_grad()
def read_again(target: Target, family: Family, twist: Any) -> Family:
    """The same prefixes with another twist's log psi."""
    begun = family.tokens[:, 0, :-1].to(target.lm.device)
    steps = prefill_steps(
        target, Base(), as_twist(twist), begun, observed=family.observed, most_rows=len(begun)
    )
    log_psi = steps.whole()[1].double().cpu().gather(1, family.tokens[..., -1])
    return replace(family, log_psi=torch.where(family.log_psi.isnan(), math.nan, log_psi))


def with_star(
    target: Target,
    family: Family,
    oracle: Oracle | None,
    *,
    rollouts: int = ROLLOUTS,
    seed: int = 0,
) -> Family:
    """The family with its log psi*."""
    how: dict[str, Any] = {"rollouts": rollouts, "seed": seed}
    if family.observed is not None:
        how["observed"] = family.observed.repeat_interleave(family.tokens.shape[1], 0)
    found = psi_star(target, family.tokens.flatten(0, 1), oracle, **how)
    log_star, error = (values.reshape(family.log_psi.shape) for values in found)
    return replace(family, log_star=log_star, error=error)


def rollout_texts(
    target: Target, begun: Int[Tensor, " t"], family: Family, *, count: int = 4, seed: int = 0
) -> list[str]:
    """Some sequences that p0 ends a prefix with, each after its log phi."""
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_600 + family.t)
    tokens, _ = finished(target, begun.unsqueeze(0).to(target.lm.device), count,
                         generator=generator)  # fmt: skip
    if target.is_conditional:
        return target.labels(tokens[0])
    log_phi = target.log_phi(tokens[0]).tolist()
    rows = zip(log_phi, target.labels(tokens[0]), strict=True)
    return [f"log φ {value:.2f}: {text}".replace("-", "−") for value, text in rows]


def fill_in(
    target: Target, families: list[Family], *, rollouts: int = ROLLOUTS, seed: int = 0
) -> Iterator[Family]:
    """Each family with its log psi*: exact where the oracle reaches, else rolled out."""
    oracle = reachable_oracle(target)
    for family in families:
        yield with_star(target, family, oracle, rollouts=rollouts, seed=seed)


def family_frame(target: Target, families: list[Family]) -> Any:
    """One row a prefix: t, parent, token, text, log_psi, log_star, log_star_error, in nats."""
    rows, parents = [], 0
    for family in families:
        texts = target.labels(family.tokens.flatten(0, 1).to(target.lm.device))
        for place, text in enumerate(texts):
            parent, sibling = divmod(place, family.tokens.shape[1])
            at = (parent, sibling)
            rows.append(
                {
                    "t": family.t,
                    "parent": parents + parent,
                    "token": int(family.tokens[parent, sibling, -1]),
                    "text": text,
                    "log_psi": float(family.log_psi[at]),
                    "log_star": float(family.log_star[at]),
                    "log_star_error": float(family.error[at]),
                }
            )
        parents += len(family.tokens)
    frame = frame_of(rows, FRAME)
    return frame.astype({name: float for name in FRAME if name.startswith("log")})


@dataclass(frozen=True)
class TwistReport:
    """What was measured of a twist, and what it says.

    Attributes:
        target: sigma.
        twist: psi, NaN and +inf taken for 0.
        trace: runs that follow it.
        bellman: its Bellman error on their particles and on draws of p0.
        families: prefixes with siblings, log psi beside log psi*.
        findings: the verdict, what matters most first.
        prefixes: a table of the families: t, parent, token, text, log_psi, log_star,
            log_star_error, in nats; error, log psi less log psi*, each less its mean at t;
            ess_cost, the share of the ESS of weights psi* / psi that it costs its step.
        against: the same of another twist, at the same prefixes.
    """

    target: Target
    twist: Any
    trace: SMCTrace
    bellman: BellmanError
    families: Sequence[Family]
    prefixes: pd.DataFrame
    findings: Sequence[Finding] = ()
    against: TwistReport | None = None
    frame: pd.DataFrame = field(default_factory=lambda: frame_of([]))

    @property
    def defects(self) -> list[str]:
        """Codes of what is wrong, the most telling first; empty for a healthy twist."""
        return [finding.code for finding in self.findings if finding.defect]

    @property
    def verdict(self) -> list[str]:
        """The sentences with their evidence."""
        return [str(finding) for finding in self.findings]

    def __repr__(self) -> str:
        return "\n".join(self.verdict)


def twist_report(
    target: Target,
    twist: Any,
    against: Any = None,
    *,
    trace: SMCTrace | None = None,
    rollouts: int = ROLLOUTS,
    prompts: Iterable[Any] = (),
    seed: int = 0,
    observed: Any = None,
) -> TwistReport:
    """Measure a twist and say what is wrong with it, if anything.

    Args:
        target: sigma.
        twist: psi, of any form.
        against: another twist, measured at the same prefixes.
        trace: runs of the target under the twist, several of them; None makes 8 of 32 particles.
        rollouts: sequences for each prefix where no oracle reaches; 24 leave an error of log psi*
            of about 0.2 nats where log phi spreads by one.
        prompts: prompts on which the twist may have been learned, beside that of its card.
        seed: of runs, prefixes and rollouts.
        observed: one observation for each run, where the target waits for one; None draws eight.

    Raises:
        ValueError: the twist is of another vocabulary, or the trace of another target.
        ModelOutputError: the base model gave NaN. Of a twist that does, a finding names the prefix.
    """
    twists = [twist] if against is None else [twist, against]
    prompts, seed = check_measured(target, twists, trace, prompts, seed)
    check_integer("rollouts", rollouts, at_least=2)
    if trace is None and observed is not None:
        observed = check_observed(target, observed)
    elif target.is_conditional and trace is None:
        observed = target.exact_samples(NUM_RUNS, seed=seed, progress=False).observed
    stages = Stages(target, twist, trace=trace, observed=observed, seed=seed)
    families = list(fill_in(target, stages.families, rollouts=rollouts, seed=seed))
    report = stages.report(families, prompts)
    if against is None:
        return report
    other = Stages(target, against, observed=observed, seed=seed)
    again = [read_again(target, family, other.twist) for family in families]
    return replace(report, against=other.report(again, prompts))


def check_measured(
    target: Target, twists: Iterable[Any], trace: Any, prompts: Any, seed: Any
) -> tuple[list[Tensor], int]:
    """Token ids of the prompts, and the seed; an error for an argument that cannot be measured."""
    check_target(target)
    for twist in twists:
        some_twist(twist)
    if trace is not None:
        check_trace(trace)
        trace.check_target(target)
    ids = [prompt_ids(target.lm, prompt) for prompt in as_list("prompts", prompts, at_least=0)]
    return ids, check_integer("seed", seed, at_least=0, below=2**32)


class Stages:
    """The parts of a report in the order in which they come: runs, Bellman error, prefixes.

    Attributes:
        twist: psi, with 0 where it gave NaN or +inf.
        notes: findings so far.
        trace: runs that follow it.
        bellman: its error on their particles.
        families: prefixes with siblings, without log psi*.
    """

    def __init__(
        self, target: Target, twist: Any, *, trace: SMCTrace | None = None, observed: Any = None,
        seed: int = 0, num_particles: int = NUM_PARTICLES,
    ) -> None:  # fmt: skip
        self.target, self.seed, self.notes = target, seed, []
        self._size = num_particles
        self.twist = as_twist(twist)
        try:
            self._measure(trace, observed)
        except ModelOutputError as error:
            if not str(error).startswith("The twist"):
                raise
            words = str(error).partition(". Look for")[0]
            self.notes.append(
                Finding("not finite", f"{words}: it counts as 0 there", "one prefix is enough",
                        "tokens")
            )  # fmt: skip
            self.twist = Finite(self.twist)
            self._measure(None, observed)

    def _measure(self, trace: SMCTrace | None, observed: Any) -> None:
        target = self.target
        if trace is None:
            runs = NUM_RUNS if observed is None else len(observed)
            self.trace = run_twist(
                target, self.twist, num_runs=runs, num_particles=self._size, seed=self.seed,
                observed=observed,
            )  # fmt: skip
        else:
            self.trace = trace
        population = Population.beside_base(target, self.trace)
        self.bellman = bellman_error(target, self.twist, population, seed=self.seed)
        self.families = pick_families(target, self.twist, self.bellman, seed=self.seed)

    def report(
        self, families: Sequence[Family], prompts: Iterable[Any] = (), *, diagnosed: bool = True
    ) -> TwistReport:
        """The report, with the families whose log psi* is known; the verdict needs them all."""
        table = with_errors(family_frame(self.target, list(families)))
        report = TwistReport(self.target, self.twist, self.trace, self.bellman, families, table)
        report = replace(report, frame=step_frame(report, self.seed))
        findings = [*self.notes]
        if diagnosed:
            findings += Diagnosis(report, prompts, self.seed).findings()
        return replace(report, findings=findings)


def with_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """The table of prefixes with what statistics read: centred within t and within parents."""
    known = np.isfinite(frame["log_psi"]) & np.isfinite(frame["log_star"])
    frame = frame[known].reset_index(drop=True)
    for name, column in (("x", "log_psi"), ("z", "log_star")):
        frame[name] = frame[column] - frame.groupby("t")[column].transform("mean")
        frame[f"{name}_within"] = frame[column] - frame.groupby("parent")[column].transform("mean")
    frame["error"] = frame["x"] - frame["z"]
    frame["ess_cost"] = frame.groupby("t")["error"].transform(_ess_costs)
    frame["e"] = frame["log_star_error"]
    siblings = frame.groupby("parent")["t"].transform("size")
    frame["e_within"] = frame["e"] * np.sqrt(1 - 1 / siblings)
    # At step 1 there is one parent, and its siblings are independent of each other.
    own = -1 - np.arange(len(frame))
    frame["cluster"] = np.where(frame["t"] == 1, own, frame["parent"])
    return frame


def _ess_costs(error: pd.Series) -> np.ndarray:
    """What share of the ESS of the weights psi*/psi each prefix of a step costs the others."""
    weights = np.exp(-(error - error.min()).to_numpy())
    first, second, count = weights.sum(), (weights**2).sum(), len(weights)
    if count < 2:
        return np.zeros(count)
    rest = (first - weights) ** 2 / np.maximum(second - weights**2, 1e-300) / (count - 1)
    return rest - first**2 / second / count


def step_frame(report: TwistReport, seed: int = 0) -> pd.DataFrame:
    """One row for each t: what each instrument says of the step.

    Columns: t; bellman, the spread of the Bellman error, with bellman_low and bellman_high; bound,
    1 / T; variance, of the log increments, with low and high; ess and ancestors, shares of K, with
    low and high; r2, slope and rank_correlation of learned against true log psi, with low and high,
    where the step was looked at. All logs in nats, intervals of 95 %.
    """
    bellman, shares = report.bellman.frame, profiles(report.trace).groupby("quantity")
    frame = bellman[["t", "bound", "one_zero"]]
    for part in (
        _columns(bellman, "spread", "bellman", "spread_low", "spread_high"),
        _columns(increment_variance(report.trace), "variance", "variance"),
        _columns(shares.get_group("ESS"), "mean", "ess"),
        _columns(shares.get_group("surviving ancestors"), "mean", "ancestors"),
    ):
        frame = frame.merge(part, on="t", how="outer")
    rows = [_calibration(int(t), part, seed) for t, part in report.prefixes.groupby("t")]
    if rows:
        frame = frame.merge(frame_of(rows), on="t", how="left")
    return frame


def _columns(
    table: pd.DataFrame, value: str, name: str, low: str = "low", high: str = "high"
) -> pd.DataFrame:
    """Step, value and both ends of a table, with the value's new name in those of the ends."""
    names = {value: name, low: f"{name}_low", high: f"{name}_high"}
    return table[["t", *names]].rename(columns=names)


def with_kl(report: TwistReport, seed: int = 0) -> TwistReport:
    """The report with KL(sigma_t || pi_t) in its frame: kl, kl_low, kl_high, in nats.

    Exact by enumeration where that reaches, else from exact samples and rollouts where rejection
    finds enough; without either, and for a twist that only proposes, the report as it is.
    """
    target, twist = report.target, report.twist
    if target.is_conditional or twist.proposal_only:
        return report
    try:
        if reachable_oracle(target) is not None:
            oracle = EnumeratedOracle(target, max_sequences=ORACLE_BUDGET)
            found = step_divergences(target, twist, oracle)
        else:
            samples = target.exact_samples(16, seed=seed, budget=20_000, progress=False)
            found = estimate_step_divergences(
                target, twist, samples, log_z=samples, num_particles=32, num_runs=8,
                rollouts=16, seed=seed,
            )  # fmt: skip
    except (TsmcError, ValueError):  # Too many sequences, too few samples, or Z = 0.
        return report
    frame = report.frame.merge(_columns(found, "value", "kl"), on="t", how="left")
    return replace(report, frame=frame)


def _calibration(t: int, part: pd.DataFrame, seed: int) -> dict[str, Any]:
    found = fit(part, seed)
    both = part["x"].to_numpy(), part["z"].to_numpy()
    ranks = bootstrap({"rank_correlation": rank_correlation}, *both, seed)
    row: dict[str, Any] = {"t": t, "num_prefixes": len(part)}
    for name, value, interval in (
        ("r2", found.r2, found.r2_interval),
        ("slope", found.slope, found.slope_interval),
        ("rank_correlation", float(rank_correlation(*both)), ranks["rank_correlation"]),
    ):
        row |= {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}
    return row


class Finite(BaseTwist):
    """Another twist with psi = 0 where it gives NaN or +inf, so that all else can be measured."""

    method, proposal_only, is_conditional = of_other(
        "twist", "method", "proposal_only", "is_conditional"
    )

    def __init__(self, twist: Any) -> None:
        self.twist = as_twist(twist)

    def prefill(self, tokens: Any, lm_step: Any, observed: Any = None) -> TwistStep:
        """Read the prompts."""
        return self._finite(prefill_twist(self.twist, tokens, lm_step, observed))

    def advance(self, tokens: Any, carry: Any, lm_step: Any) -> TwistStep:
        """Read one more token for each row."""
        return self._finite(self.twist.advance(tokens, carry, lm_step))

    def log_psi(self, tokens: Any, prompt_length: int) -> Any:
        """Log psi_t along the tokens after the prompt."""
        return _without_nan(self.twist.log_psi(tokens, prompt_length))

    def _finite(self, step: TwistStep) -> TwistStep:
        return TwistStep(_without_nan(step.log_psi_next[:]), step.carry)


def _without_nan(log_psi: torch.Tensor) -> torch.Tensor:
    return torch.where(log_psi < math.inf, log_psi, -math.inf)
