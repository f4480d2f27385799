"""Bounds on log Z from both sides, with intervals over runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer, check_number
from tsmc_widgets.evaluation.estimates import BoundsTable, LogZBounds, MeanOverRuns
from tsmc_widgets.smc.api import run_conditional_smc, run_smc
from tsmc_widgets.smc.proposals import as_proposal
from tsmc_widgets.smc.resampling import ResampleRule, resolve_rule
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.checked import as_ids
from tsmc_widgets.targets.exact_samples import ExactSamples, JointSamples
from tsmc_widgets.targets.target import Target, check_target

RULES = ("always", "ess", "never")
"""What a table compares where no rule is given; never is IWAE."""

MOST_CELLS = 2**24
"""Particles of a batch times (vocabulary + numbers recorded) are kept below about so many."""

CONDITIONAL_RUNS = 2**40
"""Address of the first conditional run: both sides draw their noise apart, so are independent."""


@dataclass(frozen=True, slots=True)
class ConditionalLogZBounds:
    """Bounds on log Z(o) for the o of each sample: one forward and one conditional run for each.

    Attributes:
        lower: log Z_hat of a forward run under each sample's o.
        upper: conditional log Z_hat with the sample itself.
        num_particles: K of both.
        rule: when they resampled, in words.
    """

    lower: Float64[Tensor, " n"]
    upper: Float64[Tensor, " n"]
    num_particles: int
    rule: str

    @property
    def gap(self) -> float:
        """Mean of upper minus lower over o, in nats: training may stop on it."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_standard_error(self) -> float:
        """Standard error of the gap; what differs between the o is taken away first."""
        return MeanOverRuns.of(self.upper - self.lower).standard_error

    @property
    def bounds(self) -> LogZBounds:
        """Bounds on the mean of log Z(o) over o; pooling over different o would bound nothing."""
        return LogZBounds(
            lower=MeanOverRuns.of(self.lower),
            upper=MeanOverRuns.of(self.upper),
            num_particles=self.num_particles,
            upper_kind="bound",
            rule=self.rule,
            lower_log_z=self.lower,
            upper_log_z=self.upper,
        )


@torch.no_grad()
def log_z_bounds(
    target: Target,
    *,
    num_particles: int | Sequence[int],
    num_runs: int | None = None,
    exact_samples: Any = None,
    approximate_samples: Any = None,
    twist: Any = None,
    proposal: Any = None,
    rule: str | ResampleRule | Sequence[str | ResampleRule] | None = None,
    ess_threshold: float | None = None,
    resampler: str = "systematic",
    seed: int = 0,
    exact_log_z: float | int | None = None,
    first_run: int = 0,
    max_rows: int | None = None,
) -> LogZBounds | ConditionalLogZBounds | BoundsTable:
    """Bound log Z from below by forward runs and from above by conditional ones.

    The upper bound needs q and psi_t > 0 on every prefix of every text that sigma allows.

    Where the potential waits for an observation o, ``exact_samples`` must be joint samples, and
    log Z(o) is bounded for the o of each: by one forward and one conditional run.

    Args:
        target: whose Z.
        num_particles: K of both sides; several K give a table.
        num_runs: forward runs; with observations there is one for each sample.
        exact_samples: exact samples of sigma, each used for one conditional run.
        approximate_samples: samples of something near sigma in their place: what comes of them is
            no bound and is called an estimate.
        twist: as for ``run_smc``; None is psi = 1. A conditional twist, there and in a proposal, is
            given each run's o.
        proposal: as for ``run_smc``.
        rule: as for ``run_smc``; several rules give a table. In a table None stands for all of
            always, ess and never (IWAE), or for never alone where the proposal's twist can only
            propose.
        ess_threshold: as for ``run_smc``.
        resampler: of the forward runs; conditional ones are multinomial.
        seed: as for ``run_smc``; all K and rules share their noise, so their rows are not
            independent of each other, and differences between them are the better seen.
        exact_log_z: log Z where it is known; it is put beside the bounds. There is no single one
            for many observations.
        first_run: address of the first forward run and of the first sample's, so that parts of a
            job make what the whole would have made.
        max_rows: particles in a batch at most; None keeps the process near 2 GB (V = 653). The
            result is the same to the byte for models whose answer for a row does not depend on its
            companions (tables), and to their rounding for others.

    Returns:
        A ``LogZBounds``, or a ``ConditionalLogZBounds`` with observations; for several K or rules a
        ``BoundsTable``.

    Raises:
        ValueError: samples of the wrong kind or shape, with phi = 0, or on which psi_t or q is 0.
    """
    samples, observed, kind = read_samples(target, exact_samples, approximate_samples)
    if observed is None:
        check_integer("num_runs", num_runs)
    elif num_runs not in (None, len(observed)) or exact_log_z is not None:
        raise ValueError(
            "with observations leave num_runs and exact_log_z out: each o has its own."
        )
    check_integer("first_run", first_run, at_least=0)
    if exact_log_z is not None:
        check_number("exact_log_z", exact_log_z, "[-inf, inf]")
    tabulated = _is_several(num_particles) or _is_several(rule)
    sizes: Any = num_particles if _is_several(num_particles) else [num_particles]
    for size in sizes:
        check_integer("num_particles", size)
    rules = _rules(rule, ess_threshold, proposal, tabulated=tabulated)
    given = {} if observed is None else {"observed": observed}
    count = num_runs if observed is None else len(observed)
    forward = range(first_run, first_run + count)
    rows: list[Any] = []
    for size in sizes:
        chunk = runs_at_once(target, size, max_rows)
        for one in rules:
            how = {"num_particles": size, "twist": twist, "proposal": proposal, "rule": one}
            how |= {"seed": seed}
            ahead = how | {"resampler": resampler, "dead_runs": "keep"}
            lower, upper = _log_z_of_runs(run_smc, target, forward, chunk, given, ahead), None
            if samples is not None:
                start = CONDITIONAL_RUNS + first_run
                upper = _log_z_of_runs(
                    run_conditional_smc, target, range(start, start + len(samples)), chunk,
                    given | {"retained": samples}, how,
                )  # fmt: skip
            about: dict[str, Any] = {"num_particles": int(size), "rule": one.describe()}
            if observed is not None:
                rows.append(ConditionalLogZBounds(lower, upper, **about))
            else:
                about |= {"upper_kind": kind, "exact": exact_log_z}
                rows.append(LogZBounds.of(lower, upper, **about))
    if not tabulated:
        return rows[0]
    return BoundsTable(tuple(row if observed is None else row.bounds for row in rows))


def log_z_bounds_given(
    target: Target, samples: JointSamples, *, num_particles: int, **settings: Any
) -> ConditionalLogZBounds:
    """``log_z_bounds`` under the observations of joint samples, ``target.exact_samples(n, ...)``.

    Args:
        target: its potential waits for an observation.
        samples: a sequence and its observation each.
        num_particles: K.
        **settings: as for ``log_z_bounds``.
    """
    check_target(target)
    if not target.is_conditional:
        what = target.potential.describe()
        raise ValueError(f"{what} waits for no observation: call log_z_bounds.")
    found: Any = log_z_bounds(
        target, num_particles=num_particles, exact_samples=samples, **settings
    )
    return found


def _log_z_of_runs(
    run: Callable[..., SMCTrace],
    target: Target,
    addresses: range,
    chunk: int,
    of_each: dict[str, Tensor],
    how: dict[str, Any],
) -> Float64[Tensor, " runs"]:
    """Last log Z_hat of runs, ``chunk`` at a time; ``of_each`` holds a row for each run."""
    parts = []
    for at in range(0, len(addresses), chunk):
        own = {name: rows[at : at + chunk] for name, rows in of_each.items()}
        some = addresses[at : at + chunk]
        trace = run(target, num_runs=len(some), first_run=some[0], **own, **how)
        parts.append(trace.columns.log_z[:, -1])
    return torch.cat(parts)


def runs_at_once(target: Target, num_particles: int, max_rows: int | None) -> int:
    """How many runs one batch holds, so that memory stays bounded however many there are."""
    if max_rows is None:
        # Distinct prefixes hold V numbers each; the record holds about ten a particle and step.
        max_rows = MOST_CELLS // (target.lm.vocab_size + 10 * target.num_steps)
    else:
        check_integer("max_rows", max_rows)
    return max(1, max_rows // num_particles)


def _rules(
    rule: Any, ess_threshold: float | None, proposal: Any, *, tabulated: bool
) -> list[ResampleRule]:
    if rule is None and ess_threshold is None and as_proposal(proposal).proposal_only:
        return [resolve_rule("never", None)]
    if _is_several(rule):
        return [resolve_rule(one, None) for one in rule]
    if rule is None and tabulated:
        return [
            resolve_rule(None, ess_threshold) if one == "ess" else resolve_rule(one, None)
            for one in RULES
        ]
    return [resolve_rule(rule, ess_threshold)]


def read_samples(
    target: Target, exact_samples: Any, approximate_samples: Any
) -> tuple[Int[Tensor, "n steps"] | None, Int[Tensor, "n width"] | None, str]:
    """Tokens of either kind, the observations that come with them, and "bound" or "estimate".

    Tokens are None where no samples were given, observations where the target waits for none.

    Raises:
        ValueError: both kinds, or joint samples for a target without observations, or other
            samples for one with.
    """
    check_target(target)
    what = target.potential.describe()
    if exact_samples is not None and approximate_samples is not None:
        raise ValueError(
            "give exact_samples for an upper bound or approximate_samples for an estimate, not "
            "both: they would be averaged into something that is neither."
        )
    kind = "bound" if approximate_samples is None else "estimate"
    given = exact_samples if approximate_samples is None else approximate_samples
    if not target.is_conditional:
        if isinstance(given, JointSamples):
            raise ValueError(
                f"{what} waits for no observation, and these samples belong to many "
                "observations o, each with a log Z of its own: give the target of the samples."
            )
        name = "exact_samples" if kind == "bound" else "approximate_samples"
        return (None if given is None else tokens_of(given, name)), None, kind
    if not isinstance(given, JointSamples) or kind == "estimate":
        raise ValueError(
            f"{what} waits for an observation: give joint samples, "
            f"exact_samples=target.exact_samples(n, seed=...); got {type(given).__name__}."
        )
    check_integer("number of exact samples", len(given.tokens), at_least=2)
    return given.tokens, given.observed, kind


def tokens_of(samples: Any, name: str = "exact_samples") -> Int[Tensor, "n steps"]:
    """Tokens of samples, or of what a user gives in their place: a tensor or nested lists."""
    if isinstance(samples, ExactSamples | JointSamples):
        return samples.tokens
    return as_ids(name, samples, ndim=2)


def _is_several(value: Any) -> bool:
    return isinstance(value, Sequence | Tensor) and not isinstance(value, str | bytes)
