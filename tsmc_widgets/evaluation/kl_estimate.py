"""A KL divergence as it is reported: never clipped, with all that blurs it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets.errors import import_extra
from tsmc_widgets.evaluation.intervals import EVERYWHERE, MeanOverRuns, t_interval, welch
from tsmc_widgets.evaluation.log_z import LogZ

if TYPE_CHECKING:
    import pandas as pd

Q_SIGMA, SIGMA_Q, BOTH, Q_BASE = "KL(q||σ)", "KL(σ||q)", "KL(q||σ) + KL(σ||q)", "KL(q||p0)"


@dataclass(frozen=True, slots=True)
class KLEstimate:
    """One divergence in nats: an estimate, never clipped, with everything that blurs it.

    Attributes:
        divergence: which one, "KL(q||σ)" say.
        value: the estimate; it may come out negative; +inf where a sample proves it.
        standard_error: of sampling, that of log Z included.
        freedom: degrees of freedom of that error.
        slack: what the bounds on log Z leave open to each side, sampling apart.
        num_samples: texts that the mean is over.
        estimator: what was averaged, in words.
        log_z: the log Z used; None where it cancels.
        num_dead: samples that prove the divergence infinite.
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

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval, widened by ``slack``; both ends +inf where proved infinite."""
        if self.value == math.inf:
            return (math.inf, math.inf)
        if self.standard_error == 0:
            return (self.value - self.slack, self.value + self.slack)
        low, high = t_interval(self.value, self.standard_error, self.freedom, confidence)
        return (low - self.slack, high + self.slack)

    @property
    def remark(self) -> str:
        """What a reader must know before quoting the number; "" where there is nothing."""
        if self.value == math.inf:
            share = f"{self.num_dead:,} of {self.num_samples:,}"
            if self.divergence == SIGMA_Q:
                return f"+inf for certain: q can not write {share} exact samples of sigma."
            return f"+inf for certain: {share} samples of q have phi = 0, which sigma never writes."
        low, high = self.interval()
        if high < 0:
            where = "the samples" if self.log_z is None else f"log Z ({self.log_z.source})"
            return (
                f"Negative with its whole interval, as no KL can be: {where} must be wrong, or "
                "there are too few samples to know their own spread."
            )
        if self.value < 0:
            return "Negative, as no KL is: what blurs it is larger than it is; read the interval."
        if (low, high) == EVERYWHERE and self.num_samples < 2:
            return "One sample has no interval."
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
        log_phi: mean log phi of q's texts, in nats.
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
        pd = import_extra("pandas", "lab", "a table of divergences")
        records = []
        for kl in (self.q_sigma, self.sigma_q, self.symmetrised, self.q_base):
            if kl is None:
                continue
            low, high = kl.interval()
            records.append(
                {
                    "proposal": self.proposal,
                    "divergence": kl.divergence,
                    "value": kl.value,
                    "standard_error": kl.standard_error,
                    "low": low,
                    "high": high,
                    "num_samples": kl.num_samples,
                    "estimator": kl.estimator,
                    "log_z": math.nan if kl.log_z is None else kl.log_z.value,
                    "log_z_source": "cancels" if kl.log_z is None else kl.log_z.source,
                    "remark": kl.remark,
                }
            )
        return pd.DataFrame(records)


def combine(
    divergence: str,
    plus: MeanOverRuns | LogZ,
    minus: MeanOverRuns | LogZ,
    *,
    num_dead: int,
    estimator: str,
    approximate: bool = False,
) -> KLEstimate:
    """The difference of two independent parts, of which at most one is a log Z."""
    parts = (plus, minus)
    log_z = next((part for part in parts if isinstance(part, LogZ)), None)
    middles = [part.value if isinstance(part, LogZ) else part.mean for part in parts]
    counts = [part.num_runs for part in parts if isinstance(part, MeanOverRuns)]
    value = math.inf if num_dead else middles[0] - middles[1]
    error, freedom = welch(*(_spread(part) for part in parts))
    return KLEstimate(
        divergence=divergence,
        value=value,
        standard_error=math.nan if num_dead else error,
        freedom=freedom,
        slack=0.0 if log_z is None else log_z.slack,
        num_samples=min(counts),
        estimator=estimator + (", from approximate samples" if approximate else ""),
        log_z=log_z,
        num_dead=num_dead,
    )


def of_mean(
    divergence: str,
    values: Float64[Tensor, " n"],
    *,
    estimator: str,
    num_dead: int = 0,
    log_z: LogZ | None = None,
) -> KLEstimate:
    """A divergence that is the mean of one number for each text, paired where it must be."""
    mean = MeanOverRuns.of(values)
    return KLEstimate(
        divergence=divergence,
        value=math.inf if num_dead else mean.mean,
        standard_error=math.nan if num_dead else mean.standard_error,
        freedom=max(1, mean.num_runs - 1),
        slack=0.0 if log_z is None else log_z.slack,
        num_samples=mean.num_runs,
        estimator=estimator,
        log_z=log_z,
        num_dead=num_dead,
    )


def _spread(part: MeanOverRuns | LogZ) -> tuple[float, float | int]:
    if isinstance(part, LogZ):
        return part.standard_error, part.freedom
    return part.standard_error, part.num_runs - 1
