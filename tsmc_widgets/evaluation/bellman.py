"""Bellman error of a twist: log psi_t(s) against log E_p0[psi_{t+1}(s, .)], without rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.estimates import frame_of, mean_with_ends, mean_within, percentiles
from tsmc_widgets.smc import genealogy
from tsmc_widgets.smc.api import check_observed, run_smc
from tsmc_widgets.smc.prefixes import NextTokens, advance_steps, distinct_pairs, prefill_steps
from tsmc_widgets.smc.proposals import Base, following
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.checked import as_ids
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.twists.protocol import some_twist

if TYPE_CHECKING:
    import pandas as pd

Columns = Float64[Tensor, "runs steps particles"]
NUM_RUNS, NUM_PARTICLES = 8, 16
MAX_PHI = 2048
"""Sequences on which phi is asked at most for the expectation of one step."""
LEAST_DRAWS = 16


@dataclass(frozen=True, slots=True)
class Population:
    """Prefixes of every length: particles of runs, of which each descends from one before.

    Attributes:
        tokens: s_t of each particle.
        ancestors: slot of the step before that each descends from.
        observed: one observation for each run, where the target waits for one.
    """

    tokens: Int[Tensor, "runs steps particles"]
    ancestors: Int[Tensor, "runs steps particles"]
    observed: Int[Tensor, "runs width"] | None = None

    @classmethod
    def of(cls, sequences: Any, observed: Any = None) -> Population:
        """The particles of a trace, or whole sequences (n, T), each a run of its own."""
        if isinstance(sequences, SMCTrace):
            columns, rows = sequences.columns, sequences.info.observed
            given = None if rows is None else torch.tensor(rows)
            return cls(columns.tokens, columns.ancestors, given)
        tokens = as_ids("sequences", sequences, ndim=2).unsqueeze(-1)
        return cls(tokens, torch.zeros_like(tokens), observed)

    @classmethod
    def drawn(cls, target: Target, twist: Any, *, seed: int, observed: Any = None) -> Population:
        """Half of the runs propose and resample by the twist, half draw from p0."""
        runs = NUM_RUNS if observed is None else len(observed)
        how = {"num_runs": runs, "num_particles": NUM_PARTICLES, "seed": seed, "observed": observed}
        return cls.beside_base(target, run_twist(target, twist, **how))

    @classmethod
    def beside_base(cls, target: Target, trace: SMCTrace) -> Population:
        """The particles of a trace, and of as many more runs that draw from p0."""
        own = cls.of(trace)
        base = run_smc(
            target, num_runs=trace.num_runs, num_particles=trace.num_particles, rule="never",
            seed=trace.info.seed or 0, first_run=(trace.info.first_run or 0) + trace.num_runs,
            dead_runs="keep", observed=own.observed,
        )  # fmt: skip
        tokens, ancestors = base.columns.tokens, base.columns.ancestors
        both = None if own.observed is None else torch.cat([own.observed, own.observed])
        return cls(torch.cat([own.tokens, tokens]), torch.cat([own.ancestors, ancestors]), both)

    def prefix(self, run: int, t: int, particle: int) -> list[int]:
        """Tokens of the particle of step t, from the first on."""
        tokens = []
        for step in range(t - 1, -1, -1):
            tokens.append(int(self.tokens[run, step, particle]))
            particle = int(self.ancestors[run, step, particle])
        return tokens[::-1]


@dataclass(frozen=True)
class BellmanError:
    """Log psi_t(s) - log E_p0[psi_{t+1}(s, .)] at the prefixes of a population, in nats.

    psi* has 0 everywhere. phi stands for psi at T and wherever a sequence ends; the error of step T
    itself is that of the twist's psi_T, which proposes but never weighs, against phi. A constant
    for each t is free, so what counts is the spread within a step. Prefixes that have ended have no
    error: NaN.

    Attributes:
        target: whose twist.
        population: the prefixes.
        log_psi: log psi_t of each.
        log_value: log E_p0[psi_{t+1}(s, .)], under the power of the target; log phi at T.
        value_error: standard error of ``log_value``; 0 where no draw was needed.
    """

    target: Target
    population: Population
    log_psi: Columns
    log_value: Columns
    value_error: Columns

    @cached_property
    def error(self) -> Columns:
        """Log psi less log value; 0 where both are -inf, NaN for ended prefixes."""
        both = torch.isneginf(self.log_psi) & torch.isneginf(self.log_value)
        return torch.where(both, 0.0, self.log_psi - torch.where(both, 0.0, self.log_value))

    @cached_property
    def centred(self) -> Columns:
        """``error`` with the mean of each t taken off; NaN where it is not finite."""
        return centred(self.error)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each t.

        Columns: t; mean with low and high, its 95 % t-interval over runs; spread, the root of the
        mean squared deviation from that mean, less what sampling phi adds, with spread_low and
        spread_high; tail_low and tail_high, the 2.5 and 97.5 % quantiles about the mean; one_zero,
        prefixes at which only one side is 0; num_prefixes, in which equal ones count each; all in
        nats. ``bound`` is 1 / T: the cost of SMC is polynomial in T while errors stay O(1/T).
        """
        steps = range(self.log_psi.shape[1])
        return frame_of([self._row(t) for t in steps if self._known(t).any()])

    def prefixes(self, count: int | None = None) -> pd.DataFrame:
        """Distinct prefixes, the largest deviation from the mean of their step first.

        Columns: t, text, log_psi, log_value, error (centred), value_error, particles, run,
        particle.
        """
        rows: dict[tuple[int, ...], dict[str, Any]] = {}
        places = torch.isfinite(self.centred).nonzero().tolist()
        places.sort(key=lambda place: -abs(float(self.centred[tuple(place)])))
        for run, t, particle in places:
            tokens = self.population.prefix(run, t + 1, particle)
            seen = self.population.observed
            key = (*tokens, -1, *([] if seen is None else seen[run].tolist()))
            if key in rows:
                rows[key]["particles"] += 1
                continue
            if count is not None and len(rows) == count:
                break
            at = (run, t, particle)
            text = self.target.labels(torch.tensor([tokens], device=self.target.lm.device))[0]
            rows[key] = {
                "t": t + 1, "text": text, "log_psi": float(self.log_psi[at]),
                "log_value": float(self.log_value[at]), "error": float(self.centred[at]),
                "value_error": float(self.value_error[at]), "particles": 1,
                "run": run, "particle": particle,
            }  # fmt: skip
        return frame_of(list(rows.values()))

    def along(self, values: Tensor) -> Tensor:
        """Values (runs, steps, particles) along each last particle's path."""
        return genealogy.paths(self.population.ancestors, values)

    def _known(self, t: int) -> Bool[Tensor, "runs particles"]:
        return torch.isfinite(self.centred[:, t])

    def _row(self, t: int) -> dict[str, Any]:
        known, error, centred = self._known(t), self.error[:, t], self.centred[:, t]
        runs = known.any(1)
        of_runs = torch.where(known, error, math.nan)[runs].nanmean(1)
        excess = torch.where(known, centred**2 - self.value_error[:, t] ** 2, math.nan)
        of_squares = excess[runs].nanmean(1)
        squares = mean_within(of_squares) if of_squares.mean() > 0 else (0.0, math.nan, math.nan)
        mean = mean_with_ends(of_runs)
        spread = [math.sqrt(square) for square in squares]
        tails = percentiles(centred[known].numpy())
        return {
            "t": t + 1,
            **dict(zip(("mean", "low", "high"), mean, strict=True)),
            **dict(zip(("spread", "spread_low", "spread_high"), spread, strict=True)),
            "tail_low": tails[0], "tail_high": tails[1],
            "one_zero": int(torch.isinf(error).sum()), "num_prefixes": int(known.sum()),
            "bound": 1 / self.log_psi.shape[1],
        }  # fmt: skip


def centred(values: Columns) -> Columns:
    """Values with the mean of each step taken off; NaN where they are not finite."""
    values = torch.where(torch.isfinite(values), values, math.nan)
    return values - values.nanmean(dim=(0, 2), keepdim=True)


def run_twist(target: Target, twist: Any, **how: Any) -> SMCTrace:
    """Runs that follow a twist as far as it may be followed; those that die are kept.

    A twist that can only propose weighs nothing, and nothing is resampled.
    """
    return run_smc(target, dead_runs="keep", **following(twist), **how)


@torch.no_grad()
def bellman_error(
    target: Target,
    twist: Any,
    sequences: Any = None,
    *,
    observed: Any = None,
    seed: int = 0,
    max_phi: int = MAX_PHI,
) -> BellmanError:
    """Log psi_t(s) - log E_p0[psi_{t+1}(s, .)] at many prefixes; no rollouts, no exact samples.

    SMC's cost turns from exponential to polynomial in T where it is O(1/T) a step (arXiv
    2602.01381). The models read each distinct prefix once.

    Args:
        target: sigma.
        twist: psi, of any form.
        sequences: a trace, whose particles of every step are the prefixes; a ``Population``; or
            tokens (n, T) without the prompt; None draws particles by the twist and from p0.
        observed: where the target waits for an observation, one for each sequence, or for each of
            the runs that are drawn.
        seed: of what is drawn.
        max_phi: for the last token phi is asked about all V where phi offers that, or where the
            prefixes have no more continuations than this; else about so many draws of p0 and p0 psi
            in equal parts, 16 a prefix at least and so of no more prefixes than that allows, and
            ``value_error`` is their standard error. 0 leaves the last two steps out.

    Raises:
        ModelOutputError: psi is NaN or +inf; says after which prefix.
    """
    check_target(target)
    twist = some_twist(twist)
    check_integer("max_phi", max_phi, at_least=0)
    seed = check_integer("seed", seed, at_least=0, below=2**32)
    population = sequences
    if sequences is None:
        observed = None if observed is None else check_observed(target, observed)
        population = Population.drawn(target, twist, seed=seed, observed=observed)
    elif not isinstance(sequences, Population):
        population = Population.of(sequences, observed)
    check_observed(target, population.observed)
    return _Walk(target, twist, population, seed, max_phi).errors()


class PathReader:
    """Reads given paths token by token, each distinct prefix once, as the sampler would.

    Attributes:
        steps: answers for the distinct prefixes so far.
        rows: each path's place among them.
        live: paths that go on.
        paths: tokens of each path so far.
        seen: what is observed with each distinct prefix.
    """

    def __init__(self, target: Target, proposal: Any, twist: Any, population: Population) -> None:
        self.target, self.proposal, self.twist = target, proposal, twist
        device, observed = target.lm.device, population.observed
        runs, self.num_steps, self.size = population.tokens.shape
        self.tokens = population.tokens.to(device)
        self.ancestors = population.ancestors.to(device)
        self.observed = self.seen = None if observed is None else observed.to(device)
        rows = torch.zeros(runs, dtype=torch.int64, device=device)
        if self.observed is not None:
            self.seen, rows = torch.unique(self.observed, dim=0, return_inverse=True)
        self.rows = rows.unsqueeze(1).expand(-1, self.size)
        self.live = torch.ones_like(self.rows, dtype=torch.bool)
        self.paths = self.tokens.new_zeros(runs, self.size, 0)
        none = self.tokens.new_zeros(1 if self.seen is None else len(self.seen), 0)
        self.steps = prefill_steps(
            target, proposal, twist, none, observed=self.seen, most_rows=self.rows.numel()
        )

    def take(self) -> tuple[NextTokens, Bool[Tensor, "runs particles"]]:
        """Take the next token of each path: what weighs it, and which had not ended before."""
        t = self.paths.shape[2]
        came, tokens = self.ancestors[:, t], self.tokens[:, t]
        self.rows, self.live = self.rows.gather(1, came), self.live.gather(1, came)
        before = self.live
        drawn = self.steps.draw(self.rows, torch.zeros(self.rows.shape).double(), given=tokens)
        self.paths = self.paths.gather(1, came.unsqueeze(-1).expand_as(self.paths))
        self.paths = torch.cat([self.paths, tokens.unsqueeze(-1)], dim=-1)
        if self.target.ending is not None:
            ends = self.target.ending.ends(self.paths.flatten(0, 1)).reshape(before.shape)
            self.live = before & ~ends
        return drawn, before

    def extend(self) -> bool:
        """Read the tokens that were taken; whether any path goes on."""
        members = self.live.reshape(-1).nonzero().squeeze(1)
        if not len(members):
            return False
        pairs = distinct_pairs(self.rows, self.paths[..., -1], members, self.target.lm.vocab_size)
        flat = self.paths.flatten(0, 1)
        self.steps = advance_steps(self.target, self.proposal, self.twist, self.steps, pairs, flat)
        # Paths that have ended point at a row that exists, whatever became of their own.
        rows = torch.zeros_like(self.rows).reshape(-1)
        rows[members] = pairs.inverse
        self.rows = rows.reshape(self.rows.shape)
        if self.observed is not None:
            self.seen = self.observed[pairs.first // self.size]
        return True


class _Walk(PathReader):
    """Compares what psi says of each prefix with what it says of the next ones."""

    def __init__(
        self, target: Target, twist: Any, population: Population, seed: int, max_phi: int
    ) -> None:
        super().__init__(target, Base(), twist, population)
        self.population, self.max_phi = population, max_phi
        self.generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_301)

    def errors(self) -> BellmanError:
        """Every step."""
        shape = self.population.tokens.shape
        log_psi, log_value, error = (torch.full(shape, math.nan).double() for _ in range(3))
        for t in range(1, self.num_steps + 1):
            last = t == self.num_steps
            if last and not self.max_phi:
                break
            if t > 1:
                value, deviation = self._values(t)
                for column, found in ((log_value, value), (error, deviation)):
                    column[:, t - 2] = torch.where(self.live, found[self.rows], math.nan).cpu()
            drawn, before = self.take()
            counts = before if last else self.live
            log_psi[:, t - 1] = torch.where(counts, drawn.log_psi, math.nan).cpu()
            if last:
                log_value[:, -1], error[:, -1] = self._log_phi(before), 0.0
            elif not self.extend():
                break
        return BellmanError(self.target, self.population, log_psi, log_value, error)

    def _log_phi(self, live: Tensor) -> Float64[Tensor, "runs particles"]:
        observed = None
        if self.observed is not None:
            observed = self.observed.repeat_interleave(self.size, 0)
        log_phi = self._phi(self.paths.flatten(0, 1), observed).reshape(live.shape)
        return torch.where(live, log_phi, math.nan).cpu()

    def _phi(self, tokens: Tensor, observed: Tensor | None) -> Float64[Tensor, " n"]:
        """Log phi of sequences that have ended."""
        return self.target.log_phi_given(self.target.whole(tokens), observed)

    def _values(self, t: int) -> tuple[Tensor, Tensor]:
        """Log E_p0[psi_t] after each distinct prefix of t - 1 tokens, and its standard error."""
        values, errors = [], []
        prefixes = self.steps.prefixes()
        for start, log_p, _, log_psi in self.steps.parts():
            rows = slice(start, start + len(log_p))
            seen = None if self.seen is None else self.seen[rows]
            log_p, log_psi = log_p.double(), log_psi.double()
            error = torch.zeros(len(log_p), dtype=torch.float64, device=log_p.device)
            if t == self.num_steps:
                part = (prefixes[rows], seen, log_p, log_psi)
                value, error = self._last(*part, self.max_phi // self.steps.size)
            else:
                log_psi = self._ended(prefixes[rows], seen, log_psi)
                value = numerics.logsumexp(_product(log_p, log_psi))
            values.append(value)
            errors.append(error)
        return torch.cat(values), torch.cat(errors)

    def _ended(self, prefixes: Tensor, seen: Tensor | None, log_psi: Tensor) -> Tensor:
        """Log psi with log phi for the next tokens that end a sequence."""
        if self.target.ending is None:
            return log_psi
        row, token = self.target.ending.next(prefixes).nonzero(as_tuple=True)
        whole = torch.cat([prefixes[row], token.unsqueeze(1)], dim=1)
        log_phi = self._phi(whole, None if seen is None else seen[row])
        return log_psi.index_put((row, token), log_phi)

    def _last(
        self, prefixes: Tensor, seen: Tensor | None, log_p: Tensor, log_psi: Tensor, each: int
    ) -> tuple[Tensor, Tensor]:
        """Log E_p0[phi] over the last token of some prefixes, and its standard error."""
        count, vocab = log_p.shape
        exactly = torch.zeros(count, dtype=torch.float64, device=log_p.device)
        if seen is None and self.target.log_phi_next is not None:
            return numerics.logsumexp(_product(log_p, self.target.log_phi_next(prefixes))), exactly
        draws = vocab if vocab <= each else max(LEAST_DRAWS, each)
        asked = count if vocab <= each else max(1, min(count, self.max_phi // draws))
        if asked < count:
            # Every so many of them, so that p0's own are among them.
            some = torch.linspace(0, count - 1, asked, device=log_p.device).round().long()
            part = None if seen is None else seen[some]
            found = self._last(prefixes[some], part, log_p[some], log_psi[some], each)
            blank = torch.full_like(exactly, math.nan)
            return blank.index_copy(0, some, found[0]), blank.index_copy(0, some, found[1])
        if vocab <= each:
            tokens, log_ratio = torch.arange(vocab).expand(count, -1), log_p
        else:
            q = (numerics.normalise(log_p) + numerics.normalise(_product(log_p, log_psi))) / 2
            tokens = torch.multinomial(q, draws, replacement=True, generator=self.generator)
            log_ratio = log_p.gather(1, tokens) - q.gather(1, tokens).log() - math.log(draws)
        row = torch.arange(count, device=log_p.device).repeat_interleave(draws)
        whole = torch.cat([prefixes[row], tokens.to(row.device).reshape(-1, 1)], dim=1)
        log_phi = self._phi(whole, None if seen is None else seen[row]).reshape(count, draws)
        terms = _product(log_ratio, log_phi)
        value = numerics.logsumexp(terms)
        if vocab <= each:
            return value, exactly
        shares = torch.where(torch.isneginf(value), 0.0, terms.T - value).T.exp() * draws
        return value, shares.std(1) / math.sqrt(draws)


def _product(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Sum of logs in which a zero stays a zero."""
    return torch.where((log_a == -math.inf) | (log_b == -math.inf), -math.inf, log_a + log_b)
