"""KL divergences between a proposal q and the target sigma, both ways (paper, section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer, quoted
from tsmc_widgets.evaluation.bellman import PathReader, Population
from tsmc_widgets.evaluation.bounds import ConditionalLogZBounds, read_samples, runs_at_once
from tsmc_widgets.evaluation.estimates import (
    AGREE,
    EVERYWHERE,
    HEAVY,
    Estimate,
    LogZ,
    MeanOverRuns,
    frame_of,
    pareto_shape,
    welch,
)
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.proposals import Base, ModelProposal, Proposal, TwistInduced, as_proposal
from tsmc_widgets.targets.exact_samples import ExactSamples
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist

if TYPE_CHECKING:
    import pandas as pd


Q_SIGMA, SIGMA_Q, BOTH, Q_BASE = "KL(q||σ)", "KL(σ||q)", "KL(q||σ) + KL(σ||q)", "KL(q||p0)"


@dataclass(frozen=True, slots=True)
class KLEstimate(Estimate):
    """One divergence in nats: an estimate, never clipped, with its sources of error.

    Attributes:
        divergence: which one, "KL(q||σ)" say.
        value: the estimate; it may come out negative; +inf where a sample proves it.
        standard_error: of sampling, that of log Z included.
        freedom: degrees of freedom of that error.
        slack: what the bounds on log Z leave open to each side, sampling apart.
        num_samples: sequences that the mean is over.
        estimator: what was averaged, in words.
        log_z: the log Z used; None where it cancels.
        num_dead: samples that prove the divergence infinite.
        unseen: sum of 1 / n over means whose n draws agree.
        k_hat: Pareto k of the heavier tail of what was averaged; NaN where it is not known.
    """

    divergence: str
    value: float
    standard_error: float
    freedom: float | int
    slack: float
    num_samples: int
    estimator: str
    log_z: LogZ | None = None
    num_dead: int = 0
    unseen: float = 0.0
    k_hat: float = field(default=math.nan, compare=False)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval, widened by ``slack``; both ends +inf where proved infinite."""
        if self.value == math.inf:
            return (math.inf, math.inf)
        return Estimate.interval(self, confidence)

    @property
    def remark(self) -> str:
        """What a reader must know before quoting the number; "" where there is nothing."""
        if self.value == math.inf:
            share = f"{self.num_dead:,} of {self.num_samples:,}"
            if self.divergence == SIGMA_Q:
                return f"+inf for certain: q cannot write {share} exact samples of sigma."
            return f"+inf for certain: {share} samples of q have phi = 0, which sigma never writes."
        low, high = self.interval()
        if high < 0:
            where = "the samples" if self.log_z is None else f"log Z ({self.log_z.source})"
            return (
                f"Negative with its whole interval, as no KL can be: {where} must be wrong, or "
                "there are too few samples to know their own spread."
            )
        if self.value < 0:
            return "Negative, as no KL is: its error is larger than it is; read the interval."
        if (low, high) == EVERYWHERE and self.num_samples < 2:
            return "One sample has no interval."
        if self.k_hat > HEAVY:
            return (
                f"A few samples decide it: what is averaged has a heavy tail (Pareto k = "
                f"{self.k_hat:.2f}, above {HEAVY}), so the truth may lie far outside the interval."
            )
        if self.unseen and self.divergence == Q_SIGMA:
            return (
                f"All {self.num_samples:,} samples agree. Were q to write sequences of phi = 0 as "
                f"rarely as {math.log(40) / self.num_samples:.2g}, none may have been seen, and "
                "the divergence would be +inf."
            )
        return ""


@dataclass(frozen=True, slots=True)
class Divergences:
    """What is known of a proposal q against sigma, each with its interval.

    Attributes:
        q_sigma: KL(q||sigma) = log Z - F_q; None without a log Z.
        sigma_q: KL(sigma||q) = G_q - log Z; None without exact samples or log Z.
        symmetrised: their sum G_q - F_q, in which log Z cancels; None without exact samples.
        q_base: KL(q||p0).
        f: F_q = E_q[log sigma~ - log q], the lower bound of one particle; -inf if a sample is dead.
        g: G_q = E_sigma[log sigma~ - log q], the upper bound of one particle; None without samples.
        log_phi: mean log phi of q's sequences, in nats.
        log_z: log Z used; None where none was given.
        proposal: q in a few words.
        num_observations: of how many o this is the mean; None without observations.
    """

    q_sigma: KLEstimate | None
    sigma_q: KLEstimate | None
    symmetrised: KLEstimate | None
    q_base: KLEstimate
    f: MeanOverRuns
    g: MeanOverRuns | None
    log_phi: MeanOverRuns
    log_z: LogZ | None
    proposal: str
    num_observations: int | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row for each divergence, in nats: value, error, 95 % interval, sources, remark."""
        records = [
            {"proposal": self.proposal, "divergence": kl.divergence}
            | kl.row()
            | {
                "num_samples": kl.num_samples,
                "estimator": kl.estimator,
                "log_z": math.nan if kl.log_z is None else kl.log_z.value,
                "log_z_source": "cancels" if kl.log_z is None else kl.log_z.source,
                "remark": kl.remark,
            }
            for kl in self.all()
        ]
        return frame_of(records)

    def all(self) -> list[KLEstimate]:
        """The divergences that are known."""
        every = (self.q_sigma, self.sigma_q, self.symmetrised, self.q_base)
        return [kl for kl in every if kl is not None]


def kl_estimate(
    divergence: str,
    plus: MeanOverRuns | LogZ,
    minus: MeanOverRuns | LogZ | None = None,
    *,
    estimator: str,
    num_dead: int = 0,
    log_z: LogZ | None = None,
    shared: Float64[Tensor, " samples"] | None = None,
    k_hat: float = math.nan,
) -> KLEstimate:
    """A mean, or the difference of two parts; one dead sample proves it infinite.

    ``log_z`` is what was subtracted within a mean; a part that is a log Z is found by itself. Parts
    are independent, unless ``shared`` holds the values whose mean ``plus`` is and ``minus`` is a
    log Z that rests on the same samples: then their covariance is taken off.
    """
    parts = [plus] if minus is None else [plus, minus]
    value, error, freedom = plus.value, plus.standard_error, max(1, plus.freedom)
    if minus is not None:
        value, (error, freedom) = plus.value - minus.value, welch(plus, minus)
        influence = minus.influence if isinstance(minus, LogZ) else None
        if shared is not None and influence is not None and len(shared) == len(influence) > 1:
            centred = (shared - shared.mean()) * (influence - influence.mean())
            covariance = float(centred.sum()) / (len(shared) - 1) / len(shared)
            error = math.sqrt(max(0.0, error**2 - 2 * covariance))
    log_z = next((part for part in parts if isinstance(part, LogZ)), log_z)
    return KLEstimate(
        divergence=divergence,
        value=math.inf if num_dead else value,
        standard_error=math.nan if num_dead else error,
        freedom=freedom,
        slack=0.0 if log_z is None else log_z.slack,
        num_samples=min(part.num_runs for part in parts if isinstance(part, MeanOverRuns)),
        estimator=estimator,
        log_z=log_z,
        num_dead=num_dead,
        unseen=sum(part.unseen for part in parts),
        k_hat=k_hat,
    )


def tail_shape(values: Float64[Tensor, " n"]) -> float:
    """Pareto k of the distances of values from their median (Vehtari et al. 2024).

    A mean has a variance below 0.5 and none above. NaN for fewer than 25 values, for values that
    agree or are infinite, and where arviz-stats is not installed.
    """
    if not bool(torch.isfinite(values).all()):
        return math.nan
    distances = (values - values.median()).abs()
    return pareto_shape(distances.clamp(min=AGREE).log())


@dataclass(frozen=True, slots=True)
class Sampler:
    """A proposal with the twist that it follows, if it follows the sampler's.

    Attributes:
        proposal: q.
        twist: the sampler's twist where q follows it; None elsewhere, for q alone is evaluated.
    """

    proposal: Proposal
    twist: Any = None

    @classmethod
    def of(cls, proposal: Any, twist: Any) -> Sampler:
        """What a user's ``proposal`` and ``twist`` name.

        A language model is a proposal; without a proposal, a twist induces one, and without
        either it is p0.
        """
        if proposal is None:
            if twist is None:
                return cls(Base())
            proposal = TwistInduced()
        elif isinstance(proposal, LanguageModel) and not isinstance(proposal, Proposal):
            proposal = ModelProposal(proposal)
        proposal, twist = as_proposal(proposal), as_twist(twist)
        follows = proposal.follows_twist
        if follows and twist is not None and twist.proposal_only:
            # Such a twist may not weigh, and q needs it for proposing only.
            return cls(TwistInduced(twist))
        return cls(proposal, twist if follows else None)


@dataclass(frozen=True, slots=True)
class Scores:
    """What p0, q and phi give to sequences, in nats.

    Attributes:
        log_p: log p0(s).
        log_q: log q(s); -inf where q never writes the sequence.
        log_phi: log phi(s).
    """

    log_p: Float64[Tensor, " n"]
    log_q: Float64[Tensor, " n"]
    log_phi: Float64[Tensor, " n"]

    @property
    def log_weight(self) -> Float64[Tensor, " n"]:
        """Log of sigma~(s) / q(s); +inf where only q is zero."""
        return self.log_p + self.log_phi - self.log_q

    @classmethod
    def joined(cls, parts: Iterable[Scores]) -> Scores:
        """Scores of several batches."""
        parts = list(parts)
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def require_possible(self, target: Target, tokens: Int[Tensor, "n steps"]) -> None:
        """Raise ValueError if some of what should be samples of sigma is impossible under it."""
        impossible = ((self.log_phi == -math.inf) | (self.log_p == -math.inf)).nonzero()
        if len(impossible):
            row = int(impossible[0, 0])
            raise ValueError(
                f"these cannot be samples of sigma: row {row}, "
                f"{quoted(target.labels(tokens[row : row + 1])[0])}, has sigma = 0. Take "
                "target.exact_samples(...) or tw.exact(target).sample(...)."
            )


def draw_from(
    target: Target,
    sampler: Sampler,
    count: int,
    seed: int,
    first_run: int,
    *,
    observed: Int[Tensor, "n width"] | None = None,
) -> Scores:
    """Scores of ``count`` draws from q, under ``observed`` if any, as runs of one particle."""
    trace = run_smc(
        target,
        num_particles=1,
        num_runs=count,
        proposal=sampler.proposal,
        twist=sampler.twist,
        rule="never",
        seed=seed,
        first_run=first_run,
        dead_runs="keep",
        observed=observed,
    )
    columns = trace.columns
    return Scores(
        log_p=columns.log_p.sum(1)[:, 0],
        log_q=columns.log_q.sum(1)[:, 0],
        log_phi=columns.log_psi[:, -1, 0],
    )


@torch.no_grad()
def score_sequences(
    target: Target,
    tokens: Int[Tensor, "n steps"],
    sampler: Sampler,
    *,
    observed: Int[Tensor, "n width"] | None = None,
) -> Scores:
    """Score given sequences by reading them once, each distinct prefix one time.

    Args:
        target: gives p0 and phi, and says where a sequence ends.
        tokens: generated tokens without the prompt; after an absorbing EOS all are EOS.
        sampler: gives q.
        observed: what is observed with each sequence, where the target waits for it.
    """
    tokens = tokens.to(target.prompt_tokens.device)
    paths = Population(tokens.unsqueeze(-1), torch.zeros_like(tokens).unsqueeze(-1), observed)
    reader = PathReader(target, sampler.proposal, sampler.twist, paths)
    log_p = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    log_q = log_p.clone()
    for _ in range(target.num_steps):
        read, live = reader.take()
        log_p += torch.where(live, read.log_p, 0.0).squeeze(1)
        log_q += torch.where(live, read.log_q, 0.0).squeeze(1)
        if reader.paths.shape[2] == target.num_steps or not reader.extend():
            break
    log_phi = target.log_phi_given(tokens, observed)
    return Scores(log_p.cpu(), log_q.cpu(), log_phi.cpu())


@torch.no_grad()
def kl_divergences(
    target: Target,
    *,
    proposal: Any = None,
    twist: Any = None,
    num_samples: int = 1000,
    exact_samples: Any = None,
    approximate_samples: Any = None,
    log_z: Any = None,
    seed: int = 0,
    first_run: int = 0,
    max_rows: int | None = None,
) -> Divergences:
    """Estimate KL(q||sigma) = log Z - F_q and KL(sigma||q) = G_q - log Z, without resampling.

    Where the potential waits for an observation o, ``exact_samples`` must be joint samples. For
    the o of each, one sequence is drawn from q; F, G and log Z are compared within each o, so that
    what differs between them cancels before errors are taken.

    Args:
        target: sigma.
        proposal: q: a proposal or any language model; None is induced by ``twist``, or p0 without.
        twist: the twist that a ``TwistInduced()`` follows.
        num_samples: sequences drawn from q; with observations, as many as there are exact samples.
        exact_samples: exact samples of sigma, for KL(sigma||q); each is used once.
        approximate_samples: samples of something near sigma in their place; what they give is
            called so.
        log_z: log Z, as ``LogZ.of`` reads it (a number, an oracle, bounds, rejection's samples, a
            bracket); None takes it from ``exact_samples`` if rejection made them. With
            observations a ``ConditionalLogZBounds``, or a tensor of one exact value a sample.
        seed: of the noise, as for ``run_smc``.
        first_run: address of the first sequence drawn.
        max_rows: sequences in a batch at most, as for ``log_z_bounds``.

    Returns:
        Both divergences with their intervals, and what they are made of. Without any log Z only
        what does not need it.

    Raises:
        ValueError: samples of the wrong kind or shape, or with phi = 0.
    """
    sampler = Sampler.of(proposal, twist)
    check_integer("first_run", first_run, at_least=0)
    tokens, observed, kind = read_samples(target, exact_samples, approximate_samples)
    if observed is None:
        check_integer("num_samples", num_samples, at_least=2)
    count = num_samples if observed is None else len(observed)
    size = runs_at_once(target, 1, max_rows)

    def given(at: int) -> Int[Tensor, "n width"] | None:
        return None if observed is None else observed[at : at + size]

    drawn = Scores.joined(
        draw_from(target, sampler, min(size, count - at), seed, first_run + at, observed=given(at))
        for at in range(0, count, size)
    )
    parts, log_weights = [], None
    if tokens is not None:
        for at in range(0, len(tokens), size):
            some = tokens[at : at + size]
            parts.append(score_sequences(target, some, sampler, observed=given(at)))
            parts[-1].require_possible(target, some)
        log_weights = Scores.joined(parts).log_weight
    values: Any
    if observed is not None:
        values, known = _log_z_of_each(log_z, count)
    else:
        if log_z is None and isinstance(exact_samples, ExactSamples):
            log_z = exact_samples
        values = known = None if log_z is None else LogZ.of(log_z)
    found = _both_ways(
        drawn.log_weight, log_weights, values, known,
        paired=observed is not None, approximate=kind == "estimate",
    )  # fmt: skip
    return Divergences(
        **found,
        q_base=_from_base(drawn.log_q - drawn.log_p),
        f=MeanOverRuns.of(drawn.log_weight),
        g=None if log_weights is None else MeanOverRuns.of(log_weights),
        log_phi=MeanOverRuns.of(drawn.log_phi),
        log_z=known,
        proposal=sampler.proposal.describe(),
        num_observations=None if observed is None else len(torch.unique(observed, dim=0)),
    )


def _from_base(log_ratio: Float64[Tensor, " n"]) -> KLEstimate:
    """KL(q || p0) from log q - log p0 of q's sequences."""
    mean, what = MeanOverRuns.of(log_ratio), "mean of log q − log p0"
    return kl_estimate(Q_BASE, mean, estimator=what, k_hat=tail_shape(log_ratio))


def _both_ways(
    f: Float64[Tensor, " n"],
    g: Float64[Tensor, " m"] | None,
    log_z: LogZ | Float64[Tensor, " n"] | None,
    known: LogZ | None,
    *,
    paired: bool,
    approximate: bool,
) -> dict[str, KLEstimate | None]:
    """Both divergences and their sum from log weights of q's sequences, and of sigma's.

    Where they are paired, row i of all three belongs to observation i: differences are taken within
    each observation before their mean.
    """
    dead_q, dead_sigma = (0 if x is None else int(torch.isinf(x).sum()) for x in (f, g))
    terms: dict[str, tuple[str, Any, Any, str, int]] = {
        "q_sigma": (Q_SIGMA, log_z, f, "log Z − F_q", dead_q),
        "sigma_q": (SIGMA_Q, g, log_z, "G_q − log Z", dead_sigma),
        "symmetrised": (BOTH, g, f, "G_q − F_q", dead_q + dead_sigma),
    }
    found = dict.fromkeys(terms)
    for key, (name, plus, minus, what, dead) in terms.items():
        if plus is None or minus is None:
            continue
        about: dict[str, Any] = {"num_dead": dead}
        if paired:
            what += ", within each observation"
            about["log_z"] = None if key == "symmetrised" else known
            sides = [plus - minus]
        else:
            what += ", from approximate samples" * (approximate and plus is g)
            about["shared"] = plus if plus is g else None
            sides = [plus, minus]
        shapes = [tail_shape(x) for x in sides if not isinstance(x, LogZ)]
        about["k_hat"] = float(np.fmax.reduce(shapes))  # NaN only where all are.
        parts = [x if isinstance(x, LogZ) else MeanOverRuns.of(x) for x in sides]
        found[key] = kl_estimate(name, *parts, estimator=what, **about)
    return found


def _log_z_of_each(log_z: Any, count: int) -> tuple[Float64[Tensor, " n"] | None, LogZ | None]:
    """Log Z(o) of each sample's o, and what is known of their mean."""
    if log_z is None:
        return None, None
    if isinstance(log_z, ConditionalLogZBounds):
        summary = LogZ.of(log_z.bounds)
        source = f"mean over observations of the {summary.source}"
        return (log_z.lower + log_z.upper) / 2, replace(summary, source=source)
    values = torch.as_tensor(log_z, dtype=torch.float64).reshape(-1)
    if len(values) != count:
        raise ValueError(
            f"log_z must hold one value for each of the {count} samples, that of its own "
            f"observation, or be log_z_bounds_given(...); got {len(values)}."
        )
    mean = MeanOverRuns.of(values)
    source = "exact for each observation, mean over them"
    return values, LogZ(mean.mean, source, mean.standard_error, max(1, count - 1))
