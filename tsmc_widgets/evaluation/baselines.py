"""Baselines in one format: what each samples from, what it says of log Z, and its cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import BudgetError, check_integer, check_one_of
from tsmc_widgets.evaluation.estimates import LogZ, MeanOverRuns, PooledOverRuns, frame_of
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.exact import exact
from tsmc_widgets.smc.memory import check_run
from tsmc_widgets.smc.prefixes import Distinct, PrefixSteps, advance_steps, prefill_steps
from tsmc_widgets.smc.proposals import Base, TwistInduced
from tsmc_widgets.smc.state import SMCConfig
from tsmc_widgets.targets.context import powered_samples
from tsmc_widgets.targets.target import Target

if TYPE_CHECKING:
    import pandas as pd

SPARE = 4
"""At T, phi is computed on so many times the beam's width, where phi offers no more at once."""


class _Beam:
    """Prefixes of a beam search, the steps of those that go on, and sequences that have ended.

    ``width`` prefixes are kept by p0 psi_t (by p0 without a twist), and sequences by p0 phi at T. A
    sequence that has ended keeps its place by p0 phi.
    """

    def __init__(self, target: Target, width: int, twist: Any) -> None:
        check_run(target, SMCConfig(num_particles=width, twist=twist, proposal=Base()))
        self.target, self.width, self.twist = target, width, twist
        device = target.prompt_tokens.device
        self.tokens = torch.zeros(1, 0, dtype=torch.int64, device=device)
        self.log_p = torch.zeros(1, dtype=torch.float64)
        self.ended: list[tuple[Tensor, Tensor, Tensor]] = []
        self.steps: PrefixSteps = prefill_steps(target, Base(), twist, self.tokens, most_rows=width)
        self.read = len(target.prompt_tokens)

    @torch.no_grad()
    def run(self) -> tuple[Int[Tensor, "n steps"], Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Distinct sequences of phi > 0, best first, with log p0 and log phi of each."""
        for _ in range(1, self.target.num_steps):
            self._extend()
        return self._finish()

    def _extend(self) -> None:
        """Choose the prefixes that are one token longer and read their last tokens."""
        if not len(self.tokens):
            return
        log_p, score = self._next()
        if self.target.ending is not None:
            ends = self.target.ending.next(self.tokens).cpu()
            self._end(torch.where(ends, log_p, -math.inf))
            log_p[ends] = score[ends] = -math.inf
        rows, tokens = self._follow(log_p, score, self.width)
        if not len(rows):
            return
        each = torch.arange(len(rows), device=rows.device)
        pairs = Distinct(parents=rows, tokens=tokens, first=each, inverse=each)
        self.steps = advance_steps(self.target, Base(), self.twist, self.steps, pairs, self.tokens)
        self.read += len(rows)

    def _finish(self) -> tuple[Tensor, Tensor, Tensor]:
        if len(self.tokens):
            log_p, score = self._next()
            count, offer = self.width * SPARE, self.target.log_phi_next
            if offer is not None:
                count, score = self.width, log_p + offer(self.tokens).cpu()
            self._follow(log_p, score, count)
            self.ended.append((self.tokens, self.log_p, self.target.log_phi(self.tokens).cpu()))
        tokens, log_p, log_phi = (torch.cat(parts) for parts in zip(*self.ended, strict=True))
        total = log_p + log_phi
        best = total.argsort(descending=True, stable=True)[: self.width]
        best = best[total[best] > -math.inf]
        return tokens[best.to(tokens.device)], log_p[best], log_phi[best]

    def _next(self) -> tuple[Float64[Tensor, "n vocab"], Float64[Tensor, "n vocab"]]:
        """Log p0 of every continuation, and what it is chosen by."""
        log_p, log_psi = self.steps.whole()
        log_p = self.log_p.unsqueeze(1) + log_p.double().cpu()
        return log_p, log_p.clone() if log_psi is None else log_p + log_psi.double().cpu()

    def _follow(
        self, log_p: Float64[Tensor, "n vocab"], score: Float64[Tensor, "n vocab"], count: int
    ) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """Keep the best continuations; the prefixes and the tokens that they are made of."""
        flat = score.reshape(-1)
        best = flat.topk(min(count, len(flat))).indices
        best = best[flat[best] > -math.inf].sort().values
        rows, tokens = best // score.shape[1], best % score.shape[1]
        self.log_p = log_p[rows, tokens]
        rows, tokens = rows.to(self.tokens.device), tokens.to(self.tokens.device)
        self.tokens = torch.cat([self.tokens[rows], tokens.unsqueeze(1)], dim=1)
        return rows, tokens

    def _end(self, log_p: Float64[Tensor, "n vocab"]) -> None:
        """Put aside the sequences that end with their next token."""
        rows, tokens = (log_p > -math.inf).nonzero(as_tuple=True)
        device = self.tokens.device
        ended = [self.tokens[rows.to(device)], tokens.unsqueeze(1).to(device)]
        whole = self.target.whole(torch.cat(ended, dim=1))
        if len(whole):
            self.ended.append((whole, log_p[rows, tokens], self.target.log_phi(whole).cpu()))


@dataclass(frozen=True, slots=True)
class BaselineRun:
    """Sequences by one method, with weights and with what is known beside them.

    Attributes:
        method: its name in ``BASELINES``.
        samples_from: what the sequences are samples of, weights taken into account.
        tokens: the sequences.
        log_weights: log weight of each, up to a constant; -inf for a sequence that does not count.
        group: run of each sequence; weights compare within a run.
        log_phi: log phi of each, in nats.
        log_p: log p0 of each, in nats.
        log_z: what the method says of log Z, in nats; None where it says nothing.
        log_z_standard_error: of that; NaN for one run, 0 where it is certain.
        log_z_kind: "exact", "certain lower bound", "lower bound" (on average) or "estimate".
        forward_tokens: tokens that the base model has read.
        seconds: wall-clock time.
        note: what a reader must know, such as a budget that ended; "" where nothing.
    """

    method: str
    samples_from: str
    tokens: Int[Tensor, "n steps"]
    log_weights: Float64[Tensor, " n"]
    group: Int[Tensor, " n"]
    log_phi: Float64[Tensor, " n"]
    log_p: Float64[Tensor, " n"]
    log_z: float | None
    log_z_standard_error: float
    log_z_kind: str | None
    forward_tokens: int
    seconds: float
    note: str = ""

    @property
    def weights(self) -> Float64[Tensor, " n"]:
        """Normalised within each run."""
        weights = torch.zeros_like(self.log_weights)
        for run in self.group.unique():
            members = self.group == run
            weights[members] = numerics.normalise(self.log_weights[members])
        return weights

    @property
    def mean_log_phi(self) -> float:
        """Weighted mean of log phi, in nats; NaN where every weight is 0."""
        weights = self.weights
        total = float(weights.sum())
        kept = torch.where(weights > 0, weights * self.log_phi, 0.0)
        return float(kept.sum()) / total if total > 0 else math.nan

    @property
    def ess(self) -> float:
        """Mean effective sample size over runs."""
        sizes = [numerics.ess(self.log_weights[self.group == run]) for run in self.group.unique()]
        return float(torch.stack(sizes).mean()) if sizes else 0.0

    def to_frame(self, target: Target) -> pd.DataFrame:
        """The texts: method, run, text, weight, and in nats log_phi and log_p."""
        return frame_of(
            {
                "method": self.method,
                "run": self.group.cpu().numpy(),
                "text": target.labels(self.tokens) if len(self.tokens) else [],
                "weight": self.weights.cpu().numpy(),
                "log_phi": self.log_phi.cpu().numpy(),
                "log_p": self.log_p.cpu().numpy(),
            }
        )

    def summary(self) -> dict[str, Any]:
        """The method as one row of a table."""
        return {
            "method": self.method,
            "samples_from": self.samples_from,
            "num_texts": len(self.tokens),
            "ess": self.ess,
            "mean_log_phi": self.mean_log_phi,
            "log_z": math.nan if self.log_z is None else self.log_z,
            "log_z_standard_error": self.log_z_standard_error,
            "log_z_kind": self.log_z_kind,
            "forward_tokens": self.forward_tokens,
            "seconds": self.seconds,
            "note": self.note,
        }


def summary_frame(runs: Sequence[BaselineRun]) -> pd.DataFrame:
    """One row a method."""
    return frame_of([run.summary() for run in runs])


def rejection(
    target: Target, *, num_samples: int, seed: int = 0, max_draws: int = 100_000
) -> BaselineRun:
    """Exact samples by rejection from p0; as many as ``max_draws`` draws give."""
    start = time.perf_counter()
    note = ""
    try:
        found = target.exact_samples(num_samples, seed=seed, budget=max_draws, progress=False)
    except BudgetError as error:
        found = error.samples
        note = f"{found.accepted} of {num_samples} found in {max_draws:,} draws"
    log_z = LogZ.of(found)
    if log_z.unseen:
        low, high = log_z.interval()
        note = f"{note}; all draws agree: log Z is {low:.3g} to {high:.3g} (95 %)".lstrip("; ")
    return _run(
        target,
        start,
        method="rejection",
        samples_from="sigma, exactly",
        tokens=found.tokens,
        log_phi=found.log_phi,
        log_z=found.log_z,
        log_z_standard_error=math.nan if log_z.unseen else log_z.standard_error,
        log_z_kind="estimate",
        forward_tokens=_drawn_tokens(target, found.proposed),
        note=note,
    )


@torch.no_grad()
def best_of_n(target: Target, *, num_samples: int, seed: int = 0, n: int = 16) -> BaselineRun:
    """The sequence of largest phi among ``n`` of p0, ``num_samples`` times over."""
    check_integer("num_samples", num_samples)
    check_integer("n", n)
    start = time.perf_counter()
    generator = torch.Generator(target.lm.device).manual_seed(seed)
    drawn, log_ratio = powered_samples(target, num_samples * n, generator=generator)
    log_phi = target.log_phi(drawn).reshape(num_samples, n)
    best = log_phi.argmax(1)
    pooled = PooledOverRuns.of((log_phi.reshape(-1) + log_ratio).cpu())
    return _run(
        target,
        start,
        method="best-of-n",
        samples_from=f"the best of {n} texts of p0 by phi, which is not sigma for any n",
        tokens=drawn.reshape(num_samples, n, -1)[torch.arange(num_samples), best],
        log_phi=log_phi.gather(1, best.unsqueeze(1)).squeeze(1),
        log_z=pooled.value,
        log_z_standard_error=pooled.standard_error,
        log_z_kind="estimate",
        forward_tokens=_drawn_tokens(target, num_samples * n),
    )


def beam_search(
    target: Target, *, num_samples: int, seed: int = 0, twist: Any = None
) -> BaselineRun:
    """The ``num_samples`` sequences of largest p0 phi found by a beam as wide; ``seed`` is unused.

    Beams are kept by p0, or by p0 psi_t with a twist, and by p0 phi at T. The sequences are
    distinct, so their mass is a certain lower bound on Z.
    """
    check_integer("num_samples", num_samples)
    start = time.perf_counter()
    beam = _Beam(target, num_samples, twist)
    tokens, log_p, log_phi = beam.run()
    log_weights = log_p + log_phi
    return _run(
        target,
        start,
        method="beam",
        samples_from="nothing: modes of sigma, found greedily; weighted by sigma's mass",
        tokens=tokens,
        log_phi=log_phi,
        log_weights=log_weights,
        log_z=float(numerics.logsumexp(log_weights)),
        log_z_standard_error=0.0,
        log_z_kind="certain lower bound",
        forward_tokens=beam.read,
    )


SAMPLERS = {
    "p0, SIS": "sigma, by weight: texts of p0 weighted by phi",
    "p0, SMC": "sigma, by weight: tokens of p0, resampled by the twist",
    "twist, SIS": "sigma, by weight: texts of the twist-induced proposal",
    "twist, SMC": "sigma, by weight: tokens of the twist-induced proposal, resampled by the twist",
    "optimal twist": "sigma, exactly",
}
"""What proposes, and whether the twist resamples (SMC) or not (SIS); and what they sample from.

"twist, SIS" suits twists learned by DPG and PPO, too; "twist, SMC" is the paper's sampler.
"""


def sampler(
    method: str,
    target: Target,
    *,
    num_samples: int,
    seed: int = 0,
    num_runs: int = 1,
    twist: Any = None,
    rule: Any = None,
    oracle: Any = None,
) -> BaselineRun:
    """Sequences with weights, by one of ``SAMPLERS``.

    Args:
        method: its name.
        target: sigma.
        num_samples: K.
        seed: as for ``run_smc``.
        num_runs: runs of K sequences.
        twist: what "twist" in the name is, and what resamples.
        rule: when SMC resamples, as for ``run_smc``.
        oracle: of "optimal twist", whose weights are all Z; None computes it.
    """
    start = time.perf_counter()
    known = None
    if method == "optimal twist":
        oracle = exact(target) if oracle is None else oracle
        twist, known = oracle.optimal_twist(), oracle.log_z
    if twist is None and method != "p0, SIS":
        raise ValueError(f"{method} needs a twist: give twist=..., such as LookAheadTwist(target).")
    if not method.endswith("SMC"):
        if rule is not None:
            raise ValueError(f"{method} never resamples: leave rule out.")
        rule = "never"
    # A twist that only proposes, as in twist, SIS, must not weigh: the proposal holds it.
    holds = twist if method == "twist, SIS" else None
    proposal = Base() if method.startswith("p0") else TwistInduced(holds)
    trace = run_smc(
        target,
        num_particles=num_samples,
        num_runs=num_runs,
        twist=None if method.endswith("SIS") else twist,
        proposal=proposal,
        rule=rule,
        seed=seed,
        dead_runs="keep",
    )
    mean = MeanOverRuns.of(trace.columns.log_z[:, -1])
    dead = int((trace.columns.log_z[:, -1] == -math.inf).sum())
    size = num_runs * num_samples
    return _run(
        target,
        start,
        method=method,
        samples_from=SAMPLERS[method],
        tokens=trace.paths("tokens").reshape(size, -1),
        log_phi=trace.columns.log_psi[:, -1].reshape(-1),
        log_weights=trace.columns.log_weights[:, -1].reshape(-1),
        log_p=trace.paths("log_p").sum(-1).reshape(-1),
        group=torch.arange(num_runs).repeat_interleave(num_samples),
        log_z=mean.mean if known is None else known,
        log_z_standard_error=mean.standard_error if known is None else 0.0,
        log_z_kind="lower bound" if known is None else "exact",
        # Each distinct prefix is read once.
        forward_tokens=len(target.prompt_tokens) + int(trace.columns.distinct[1:].sum()),
        note=f"{dead} of {num_runs} runs died" if dead else "",
    )


BASELINES: Mapping[str, Callable[..., BaselineRun]] = {
    "rejection": rejection,
    "best-of-n": best_of_n,
    "beam": beam_search,
    **{name: partial(sampler, name) for name in SAMPLERS},
}
"""Every method by name; all take ``num_samples`` and ``seed``."""


def run_baseline(name: str, target: Target, *, num_samples: int, **options: Any) -> BaselineRun:
    """Run a method of ``BASELINES`` by its name."""
    check_one_of("name", name, BASELINES)
    return BASELINES[name](target, num_samples=num_samples, **options)


def _run(target: Target, start: float, *, tokens: Tensor, log_phi: Tensor, **rest: Any) -> Any:
    seconds = time.perf_counter() - start
    tokens, log_phi = tokens.cpu(), log_phi.double().cpu()
    rest.setdefault("log_weights", torch.zeros_like(log_phi))
    rest.setdefault("group", torch.zeros(len(tokens), dtype=torch.int64))
    if "log_p" not in rest:
        rest["log_p"] = target.log_p(tokens.to(target.prompt_tokens.device)).cpu()
    rest["log_weights"] = rest["log_weights"].cpu()
    return BaselineRun(tokens=tokens, log_phi=log_phi, seconds=seconds, **rest)


def _drawn_tokens(target: Target, count: int) -> int:
    """Tokens read for so many sequences of p0, at most: an EOS may end some of them early."""
    return len(target.prompt_tokens) + count * (target.num_steps - 1)
