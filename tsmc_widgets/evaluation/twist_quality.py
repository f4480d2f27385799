"""Quality of a twist: weights, survivors and divergences step by step, and log psi against psi*."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from scipy import stats
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import ModelOutputError, TsmcError, check_integer, check_kind, quoted
from tsmc_widgets.evaluation.bounds import tokens_of
from tsmc_widgets.evaluation.divergences import kl_estimate
from tsmc_widgets.evaluation.estimates import (
    LogZ,
    MeanOverRuns,
    PooledOverRuns,
    frame_of,
    percentiles,
    welch,
)
from tsmc_widgets.models.protocol import TeacherForced
from tsmc_widgets.models.tempered import table_of
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.exact import EnumeratedOracle, Oracle, exact
from tsmc_widgets.targets.checked import as_ids
from tsmc_widgets.targets.context import finished
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.twists.protocol import some_twist

if TYPE_CHECKING:
    import pandas as pd

ROLLOUTS = 32
SHARES = (0.2, 0.4, 0.6, 0.8)
PREFIXES = 6
ORACLE_BUDGET = 2**14


@dataclass
class Prefixes:
    """Prefixes at which learned and optimal log psi are compared.

    Attributes:
        tokens: sequences that the prefixes are beginnings of.
        row: which sequence each prefix begins.
        step: its length t.
        log_psi: optimal log psi_t, exact or estimated, in nats; -inf also where no rollout has
            phi > 0, which leaves it unknown.
        error: standard error of each, to first order; zeros where exact, NaN where unknown.
        note: what the numbers are, in words.
        enumerated: whether these are all prefixes there are, so that nothing is sampled.
    """

    tokens: Int[Tensor, "n steps"]
    row: Int[Tensor, " prefixes"]
    step: Int[Tensor, " prefixes"]
    log_psi: Float64[Tensor, " prefixes"]
    error: Float64[Tensor, " prefixes"]
    note: str
    enumerated: bool = False
    _base: TeacherForced | None = None

    @property
    def size(self) -> int:
        """How many prefixes."""
        return len(self.row)

    @torch.no_grad()
    def learned(self, target: Target, twist: Any) -> Float64[Tensor, " prefixes"]:
        """A twist's log psi at each prefix."""
        shared = []
        if "base" in inspect.signature(twist.log_psi).parameters:
            if self._base is None:
                tokens = target.after_prompt(self.tokens)
                self._base = target.lm.teacher_force(tokens, len(target.prompt_tokens))
            shared = [self._base]
        log_psi = _log_psi(target, twist, self.tokens, *shared)
        return log_psi[self.row.cpu(), self.step.cpu() - 1]

    def centred(self, target: Target, twist: Any) -> tuple[np.ndarray, np.ndarray]:
        """A twist's log psi and the optimal one, each with the mean of each t taken off.

        The means are over prefixes at which neither is -inf.
        """
        learned, optimal, step = self.learned(target, twist), self.log_psi.cpu(), self.step.cpu()
        finite = ~(torch.isneginf(learned) | torch.isneginf(optimal))
        return centre(learned, step, finite).numpy(), centre(optimal, step, finite).numpy()

    def texts(self, target: Target) -> list[str]:
        """Each prefix as text, without the prompt."""
        rows = zip(self.row.tolist(), self.step.tolist(), strict=True)
        return [target.labels(self.tokens[row : row + 1, :step])[0] for row, step in rows]

    def compare(self, target: Target, twist: Any) -> dict[str, Any]:
        """Both log psi with the mean of each t taken off, texts, correlation and its interval.

        Prefixes at which one of them is -inf are left out. Where the prefixes are all there are,
        both ends of the interval are the correlation itself.
        """
        learned, optimal = self.centred(target, twist)
        finite = ~(np.isneginf(learned) | np.isneginf(optimal))
        learned, optimal = learned[finite], optimal[finite]
        correlation = math.nan
        if finite.any() and learned.std() > 1e-9 and optimal.std() > 1e-9:
            correlation = float(np.corrcoef(learned, optimal)[0, 1])
        return {
            "learned": learned,
            "optimal": optimal,
            "error": self.error.cpu().numpy()[finite],
            "step": self.step.cpu().numpy()[finite],
            "text": list(compress(self.texts(target), finite)),
            "correlation": correlation,
            "interval": (
                (correlation, correlation) if self.enumerated else fisher(correlation, len(learned))
            ),
        }


def _log_psi(
    target: Target, twist: Any, tokens: Int[Tensor, "n steps"], *shared: TeacherForced
) -> Float64[Tensor, "n steps"]:
    """Log psi_t of every prefix of generated tokens, as the twist itself has it."""
    length = len(target.prompt_tokens)
    log_psi = twist.log_psi(target.after_prompt(tokens), length, *shared).double().cpu()
    if len(bad := (~(log_psi < math.inf)).nonzero()):
        row, at = bad[0].tolist()
        text = quoted(target.labels(tokens[row : row + 1, : at + 1])[0])
        raise ModelOutputError(
            f"The twist gave NaN or +inf at step {at + 1}, after the text {text}."
        )
    return log_psi


def centre(
    values: Float64[Tensor, " prefixes"],
    step: Int[Tensor, " prefixes"],
    finite: Bool[Tensor, " prefixes"],
) -> Float64[Tensor, " prefixes"]:
    """Values with the mean of each t taken off: twists are only defined up to one constant a t."""
    result = values.clone()
    for t in step[finite].unique():
        result[step == t] -= values[(step == t) & finite].mean()
    return result


def fisher(correlation: float, count: int) -> tuple[float, float]:
    """95 % interval of a correlation over ``count`` independent pairs."""
    if not abs(correlation) < 1 or count < 5:
        return (math.nan, math.nan)
    reach = 1.96 / math.sqrt(count - 3)
    middle = math.atanh(correlation)
    return math.tanh(middle - reach), math.tanh(middle + reach)


def families(
    tokens: Int[Tensor, "n steps"], t: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " prefixes"]]:
    """Number of each row's prefix of length t, and the first row of each distinct prefix."""
    # A leading column of zeros makes a family of the empty prefix, too.
    begun = torch.nn.functional.pad(tokens[:, :t], (1, 0))
    family = torch.unique(begun, dim=0, return_inverse=True)[1]
    places = torch.arange(len(tokens), device=family.device)
    first = torch.full_like(places[: int(family.max()) + 1], len(tokens))
    return family, first.scatter_reduce(0, family, places, "amin")


def all_prefixes(target: Target) -> tuple[Oracle, Prefixes]:
    """The oracle of a tiny target, and every unfinished prefix with its exact log psi*."""
    oracle = exact(target)
    whole = oracle if isinstance(oracle, EnumeratedOracle) else EnumeratedOracle(target)
    tokens = whole.tokens
    optimal = oracle.optimal_twist().log_psi(target.after_prompt(tokens), len(target.prompt_tokens))
    rows, steps = [], []
    for t in range(1, target.num_steps):
        _, first = families(tokens, t)
        first = first[~target.over(tokens)[first, t - 1]]
        rows.append(first)
        steps.append(torch.full_like(first, t))
    row, step = torch.cat(rows), torch.cat(steps)
    log_psi = optimal[row, step - 1].double()
    zeros = int(torch.isneginf(log_psi).sum())
    note = f"exact, all {len(row)} prefixes" + (f", {zeros} of them with ψ* = 0" if zeros else "")
    return oracle, Prefixes(
        tokens, row, step, log_psi, torch.zeros_like(log_psi), note, enumerated=True
    )


def pick_prefixes(
    target: Target, samples: Int[Tensor, "n steps"], *, seed: int, rollouts: int = ROLLOUTS
) -> Prefixes:
    """Prefixes of four lengths, half from p0 and half from sigma, still without log psi*."""
    check_target(target)
    seed = check_integer("seed", seed, at_least=0, below=2**32)
    check_integer("rollouts", rollouts, at_least=2)
    samples = as_ids("samples", samples, ndim=2)
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_001)
    lengths = sorted({max(1, round(share * target.num_steps)) for share in SHARES})
    count, half = len(lengths) * PREFIXES, len(lengths) * PREFIXES // 2
    drawn = target.context.draw(count - half, generator)
    tokens = torch.cat([drawn, samples[:half]])
    row = torch.arange(len(tokens))
    step = torch.tensor(lengths).repeat(len(tokens) // len(lengths) + 1)[: len(tokens)]
    blank = torch.full((len(tokens),), math.nan, dtype=torch.float64)
    note = f"{len(tokens)} prefixes, half from p₀, half from σ; ψ* from {rollouts} rollouts each"
    return Prefixes(tokens, row, step, blank, blank.clone(), note)


def roll_out(
    target: Target, prefixes: Prefixes, place: int, *, seed: int, rollouts: int = ROLLOUTS
) -> None:
    """Put ``estimate_psi_star`` for log psi* of one prefix; the error of one that ended is 0."""
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_100 + place)
    begun = prefixes.tokens[prefixes.row[place], : prefixes.step[place]].unsqueeze(0)
    log_psi, error = estimate_psi_star(target, begun, rollouts, generator)
    prefixes.log_psi[place] = log_psi[0]
    prefixes.error[place] = 0.0 if bool(have_ended(target, begun)) else error[0]


def reachable_oracle(target: Target) -> Oracle | None:
    """The oracle of a target whose model is a table and whose sequences are few, else None.

    A target that waits for an observation has none.
    """
    if target.is_conditional:
        return None
    table = table_of(target.lm)
    if table is None and target.lm.vocab_size**target.num_steps > 1024:
        return None
    try:
        return exact(target, max_sequences=ORACLE_BUDGET)
    except TsmcError:
        return None


@torch.no_grad()
def rollout_log_phi(
    target: Target,
    begun: Int[Tensor, "n t"],
    rollouts: int,
    generator: torch.Generator,
    observed: Int[Tensor, "n width"] | None = None,
) -> Float64[Tensor, "n rollouts"]:
    """Log phi of sequences that p0 ends each prefix with; of the prefixes if all have ended.

    With a power of p0 it is that of p0**power phi / q, for q with the power at each token.
    """
    if bool(have_ended(target, begun).all()):
        log_phi = target.log_phi_given(target.whole(begun), observed)
        return log_phi.cpu().unsqueeze(1).expand(-1, rollouts)
    tokens, log_ratio = finished(target, begun, rollouts, generator=generator)
    if observed is not None:
        observed = observed.repeat_interleave(rollouts, 0)
    log_phi = target.log_phi_given(tokens.flatten(0, 1), observed)
    return (log_phi.reshape(log_ratio.shape) + log_ratio).cpu()


def have_ended(target: Target, begun: Int[Tensor, "n t"]) -> Bool[Tensor, " n"]:
    """Which prefixes are T tokens long or have ended, so that phi of them is known."""
    return target.over(begun)[:, -1] | (begun.shape[1] == target.num_steps)


def estimate_psi_star(
    target: Target,
    begun: Int[Tensor, "n t"],
    rollouts: int,
    generator: torch.Generator,
    observed: Int[Tensor, "n width"] | None = None,
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Log psi* of prefixes by the mean of phi over rollouts, and its standard error to first order.

    Rollouts that agree have an error of 1 / n: as if one of the n had been of phi = 0. The error is
    NaN where no rollout has phi > 0.
    """
    check_integer("rollouts", rollouts, at_least=2)
    log_phi = rollout_log_phi(target, begun, rollouts, generator, observed)
    mean = numerics.logmeanexp(log_phi)
    shares = torch.where(torch.isneginf(mean), math.nan, log_phi.T - mean).T.exp()
    return mean, (shares.std(1) / math.sqrt(rollouts)).clamp(min=1 / rollouts)


def psi_star(
    target: Target,
    begun: Int[Tensor, "n t"],
    oracle: Oracle | None,
    *,
    rollouts: int,
    seed: int = 0,
    observed: Int[Tensor, "n width"] | None = None,
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Log psi* of prefixes of one length and its standard error: by the oracle or by rollouts."""
    if oracle is not None:
        length = len(target.prompt_tokens)
        log_psi = oracle.optimal_twist().log_psi(target.after_prompt(begun), length)
        log_star = log_psi[:, -1].double()
        return log_star, torch.zeros_like(log_star)
    device = target.lm.device
    generator = torch.Generator(device).manual_seed(seed * 10_007 + 9_500 + begun.shape[1])
    return estimate_psi_star(target, begun.to(device), rollouts, generator, observed)


@torch.no_grad()
def log_psi_path(
    target: Target, twist: Any, tokens: Int[Tensor, "n steps"]
) -> Float64[Tensor, "n steps"]:
    """Log psi_t as the sampler weighs: log phi at T, and from the step at which a row ended."""
    log_psi, log_phi = _log_psi(target, twist, tokens), target.log_phi(tokens).cpu()
    over = target.over(tokens).cpu()
    over[:, -1] = True
    return torch.where(over, log_phi.unsqueeze(1), log_psi)


@torch.no_grad()
def step_divergences(target: Target, twist: Any, oracle: EnumeratedOracle) -> pd.DataFrame:
    """KL(sigma_t || pi_t) of every step by enumeration, in nats: columns t, value, low, high, kind.

    sigma_t is the marginal of sigma over s_{1:t}, pi_t is proportional to p0 psi_t; at T they are
    equal. An optimal twist has 0 at every step.

    Args:
        target: sigma.
        twist: psi.
        oracle: ``EnumeratedOracle(target)``.
    """
    log_psi = log_psi_path(target, twist, oracle.tokens)
    records = []
    for t in range(1, target.num_steps + 1):
        family, first = (part.cpu() for part in families(oracle.tokens, t))
        log_sigma = numerics.group_logsumexp(oracle.log_sigma, family)
        log_pi = numerics.group_logsumexp(oracle.log_p, family) + log_psi[first, t - 1]
        log_pi = log_pi - numerics.logsumexp(log_pi)
        terms = log_sigma.exp() * (log_sigma - log_pi)
        value = float(torch.where(log_sigma == -math.inf, 0.0, terms).sum())
        records.append({"t": t, "value": value, "low": value, "high": value, "kind": "exact"})
    return frame_of(records)


@torch.no_grad()
def estimate_step_divergences(
    target: Target,
    twist: Any,
    exact_samples: Any,
    *,
    log_z: Any,
    num_particles: int = 64,
    num_runs: int = 40,
    rollouts: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """KL(sigma_t || pi_t) = E_sigma[log psi*_t - log psi_t] + log Z_t - log Z, estimated.

    log Z_t comes from sweeps with the twist. log psi* of each sample's prefix comes from rollouts
    of p0: their log mean is too low on average, and with the sample's own ending among them too
    high, so the truth is between both (up to the sampling error that ``low`` and ``high`` carry).

    Args:
        target: sigma.
        twist: psi; one that can weigh.
        exact_samples: exact samples of sigma.
        log_z: log Z, as ``LogZ.of`` reads it.
        num_particles: K of the sweeps.
        num_runs: sweeps.
        rollouts: sequences for each sample and step.
        seed: of sweeps and rollouts.

    Returns:
        Columns t, value (the middle, or the upper side where a rollout's mean is 0), low, high,
        kind ("estimate", "upper estimate"), for t = 1..T-1.
    """
    check_integer("rollouts", rollouts, at_least=2)
    tokens = tokens_of(exact_samples)
    known = LogZ.of(log_z)
    log_psi, log_phi = log_psi_path(target, twist, tokens), target.log_phi(tokens).cpu()
    sweeps = run_smc(
        target, num_particles=num_particles, num_runs=num_runs, twist=twist, seed=seed,
        dead_runs="keep",
    )  # fmt: skip
    records = []
    for t in range(1, target.num_steps):
        lower, upper = _rolled(target, tokens, log_phi, t, rollouts, seed)
        norm = PooledOverRuns.of(sweeps.columns.log_z[:, t - 1])
        ends = []
        for log_star in (lower, upper):
            terms = log_star - log_psi[:, t - 1]
            mean = MeanOverRuns.of(terms)
            part = kl_estimate("KL(σ_t||π_t)", mean, known, estimator="rollouts", shared=terms)
            error, freedom = welch(part, norm)
            found = replace(
                part,
                value=part.value + norm.value,
                standard_error=error,
                freedom=freedom,
                unseen=part.unseen + norm.unseen,
            )
            ends.append((found.value, *found.interval()))
        sure = math.isfinite(ends[0][0])
        records.append(
            {
                "t": t,
                "value": (ends[0][0] + ends[1][0]) / 2 if sure else ends[1][0],
                "low": ends[0][1],
                "high": ends[1][2],
                "kind": "estimate" if sure else "upper estimate",
            }
        )
    return frame_of(records)


def _rolled(
    target: Target,
    tokens: Int[Tensor, "n steps"],
    log_phi: Float64[Tensor, " n"],
    t: int,
    rollouts: int,
    seed: int,
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Log psi*_t of each sample's prefix, too low and too high on average."""
    if target.power != 1:
        raise ValueError(
            f"power={target.power!r}: an exact sample of p0**power is no rollout of p0, so that "
            "psi* has no upper estimate here. Use a target that tw.exact knows."
        )
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 7_001 + t)
    rolled = torch.cat(
        [rollout_log_phi(target, row[None, :t], rollouts, generator) for row in tokens]
    )
    own = torch.cat([rolled[:, 1:], log_phi.unsqueeze(1)], dim=1)
    return numerics.logmeanexp(rolled), numerics.logmeanexp(own)


RESAMPLES = 2000
Numbers = np.ndarray | np.floating
Statistic = Callable[[np.ndarray, np.ndarray], Numbers]


@dataclass(frozen=True, slots=True)
class PsiComparison:
    """A twist's log psi beside the optimal one, each with the mean of every t taken off.

    Means and statistics are over the prefixes at which neither is -inf.

    Attributes:
        frame: one row a prefix: t, text, learned, optimal, optimal_error, error (learned less
            optimal; 0 where both are -inf, NaN where no rollout has phi > 0), all but t and text in
            nats.
        slope: of learned on optimal (least squares); 1 is right, 0 knows nothing.
        correlation: Pearson's.
        rank_correlation: Spearman's.
        rmse: root of the mean squared error, in nats.
        intervals: 95 % interval of each of these by bootstrap over prefixes; both ends are the
            value itself where the prefixes are all there are.
        reliability: share of the optimal values' variance that is not error of rollouts; the slope
            is biased towards 0, and the rmse upwards, by what is missing to 1.
        note: where the optimal values come from, and what is left out.
        both_zero: prefixes at which both twists are zero.
        one_zero: prefixes at which only one of them is: a disagreement that no statistic counts.
    """

    frame: pd.DataFrame
    slope: float
    correlation: float
    rank_correlation: float
    rmse: float
    intervals: dict[str, tuple[float, float]]
    reliability: float
    note: str
    both_zero: int = 0
    one_zero: int = 0

    def worst(self, count: int = 10) -> pd.DataFrame:
        """The prefixes at which the twist is most wrong, worst first."""
        order = self.frame["error"].abs().sort_values(ascending=False, kind="stable").index
        return self.frame.loc[order[:count]].reset_index(drop=True)

    def summary(self) -> pd.DataFrame:
        """One row a statistic: statistic, value, low, high."""
        return frame_of(
            [
                {"statistic": name, "value": getattr(self, name), "low": low, "high": high}
                for name, (low, high) in self.intervals.items()
            ]
        )


def compare_log_psi(
    target: Target, twist: Any, prefixes: Prefixes, *, seed: int = 0
) -> PsiComparison:
    """Compare a twist with the optimal one at some prefixes.

    Args:
        target: whose twist.
        twist: psi, learned or not.
        prefixes: of ``all_prefixes``, or of ``pick_prefixes`` after ``roll_out`` on each.
        seed: of the bootstrap.

    Raises:
        ValueError: a prefix has no optimal value yet.
    """
    check_target(target)
    twist = some_twist(twist)
    check_kind("prefixes", prefixes, Prefixes, "those of all_prefixes or pick_prefixes")
    check_integer("seed", seed, at_least=0)
    if bool(prefixes.log_psi.isnan().any()):
        raise ValueError(
            "some prefixes have no optimal log psi yet: call roll_out(target, prefixes, place, "
            "seed=...) on every place first."
        )
    learned, optimal = prefixes.centred(target, twist)
    psi_zero, optimal_zero = np.isneginf(learned), np.isneginf(optimal)
    finite, both = ~(psi_zero | optimal_zero), psi_zero & optimal_zero
    error = prefixes.error.cpu().numpy()
    frame = frame_of(
        {
            "t": prefixes.step.cpu().numpy(),
            "text": prefixes.texts(target),
            "learned": learned,
            "optimal": optimal,
            "optimal_error": error,
            "error": np.where(both, 0.0, learned - np.where(both, 0.0, optimal)),
        }
    )
    if not prefixes.enumerated:
        # No rollout of phi > 0 is no proof that there is none.
        frame.loc[optimal_zero, "error"] = math.nan
    learned, optimal, error = learned[finite], optimal[finite], error[finite]
    values: dict[str, Any] = dict.fromkeys(STATISTICS, math.nan)
    if finite.any():
        values = {name: float(f(learned, optimal)) for name, f in STATISTICS.items()}
    if prefixes.enumerated or not finite.any():
        intervals = {name: (value, value) for name, value in values.items()}
    else:
        intervals = bootstrap(STATISTICS, learned, optimal, seed)
    spread = float(optimal.var()) if finite.any() else 0.0
    counts: dict[str, Any] = {
        "both_zero": int(both.sum()),
        "one_zero": int((~finite & ~both).sum()),
    }
    left_out = "; left out: {both_zero} where both are 0, {one_zero} where one is".format(**counts)
    if optimal_zero.any() and not prefixes.enumerated:
        left_out += f" (ψ* counts as 0 at {optimal_zero.sum()} where no rollout has φ > 0)"
    return PsiComparison(
        frame=frame,
        **values,
        intervals=intervals,
        reliability=max(0.0, 1 - float((error**2).mean()) / spread) if spread > 0 else math.nan,
        note=prefixes.note + ("" if finite.all() else left_out),
        **counts,
    )


def bootstrap(
    statistics: Mapping[str, Statistic], learned: np.ndarray, optimal: np.ndarray, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % percentile interval of each statistic, prefixes drawn with replacement."""
    draws = np.random.default_rng(seed).integers(len(learned), size=(RESAMPLES, len(learned)))
    drawn = learned[draws], optimal[draws]
    return {
        name: percentiles(np.asarray(statistic(*drawn))) for name, statistic in statistics.items()
    }


def _slope(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    x, y = _centred(optimal), _centred(learned)
    return _ratio((x * y).mean(-1), (x * x).mean(-1))


def _correlation(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    x, y = _centred(optimal), _centred(learned)
    return _ratio((x * y).mean(-1), np.sqrt((x * x).mean(-1) * (y * y).mean(-1)))


def rank_correlation(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    """Spearman's."""
    return _correlation(stats.rankdata(learned, axis=-1), stats.rankdata(optimal, axis=-1))


def _rmse(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    return np.sqrt(((learned - optimal) ** 2).mean(-1))


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(-1, keepdims=True)


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    """A quotient; NaN where what is below is no more than rounding."""
    return np.where(below > 1e-18, above / np.where(below > 1e-18, below, 1.0), math.nan)


STATISTICS: dict[str, Statistic] = {
    "slope": _slope,
    "correlation": _correlation,
    "rank_correlation": rank_correlation,
    "rmse": _rmse,
}
