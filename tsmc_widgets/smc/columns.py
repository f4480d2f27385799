"""What a trace is made of: the columns of every step, and how the run came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets.smc.state import SMCConfig, StepRecord
from tsmc_widgets.targets.target import Target


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """What every step recorded; see ``StepRecord`` for what each column holds."""

    resampled: Bool[Tensor, "runs steps"]
    ancestors: Int[Tensor, "runs steps particles"]
    tokens: Int[Tensor, "runs steps particles"]
    log_p: Float[Tensor, "runs steps particles"]
    log_q: Float[Tensor, "runs steps particles"]
    log_psi: Float[Tensor, "runs steps particles"]
    log_increment: Float[Tensor, "runs steps particles"]
    log_weights: Float[Tensor, "runs steps particles"]
    ess: Float[Tensor, "runs steps"]
    log_z: Float[Tensor, "runs steps"]
    distinct: Int[Tensor, " steps"]

    @classmethod
    def stack(cls, records: Sequence[StepRecord], shape: tuple[int, int]) -> TraceColumns:
        """Columns of the records of (R, K) = ``shape`` runs and particles; none gives T = 0."""
        runs, size = shape
        per_run = ("resampled", "ess", "log_z")
        columns = {}
        for name in (column.name for column in fields(cls)):
            if name == "distinct":
                columns[name] = torch.tensor([r.distinct for r in records], dtype=torch.int64)
            elif records:
                columns[name] = torch.stack([getattr(r, name) for r in records], dim=1).cpu()
            else:
                kind = {"resampled": torch.bool, "ancestors": torch.int64, "tokens": torch.int64}
                empty = (runs, 0) if name in per_run else (runs, 0, size)
                columns[name] = torch.zeros(empty, dtype=kind.get(name, torch.float64))
        return cls(**columns)


@dataclass(frozen=True, slots=True)
class TraceInfo:
    """What a trace knows of how it came about: words and numbers only, so that it can be saved.

    Attributes:
        num_steps: T, also when fewer have been recorded.
        prompt: text of s_0.
        prompt_tokens: ids of s_0.
        potential: the potential in a line.
        proposal: the proposal in a few words.
        twist: the twist's kind; None without one.
        resampler: resampling scheme.
        rule: when to resample.
        ess_threshold: the rule's fraction of K; None where the rule is not about ESS.
        seed: of the noise; None where it was scripted.
        first_run: address of the first run under that seed; None where it was scripted.
        conditional: whether slot 0 holds an exact sample (conditional SMC).
        eos_token_id: the absorbing EOS; None with fixed T.
        observed: what is observed in each run; None where the target waits for nothing.
    """

    num_steps: int
    prompt: str
    prompt_tokens: list[int]
    potential: str
    proposal: str
    twist: str | None
    resampler: str
    rule: str
    ess_threshold: float | None
    seed: int | None
    first_run: int | None
    conditional: bool
    eos_token_id: int | None
    observed: list[list[int]] | None = None

    @classmethod
    def of(cls, target: Target, config: SMCConfig) -> TraceInfo:
        """Information on a target sampled by a configuration."""
        return cls(
            num_steps=target.num_steps,
            prompt=target.lm.decode(target.prompt_tokens.unsqueeze(0))[0],
            prompt_tokens=target.prompt_tokens.tolist(),
            potential=target.potential.describe(),
            proposal=config.proposal.describe(),
            twist=None if config.twist is None else type(config.twist).__name__,
            resampler=config.resampler,
            rule=config.rule.describe(),
            ess_threshold=getattr(config.rule, "threshold", None),
            seed=getattr(config.noise, "seed", None),
            first_run=getattr(config.noise, "first_run", None),
            conditional=config.retained is not None,
            eos_token_id=target.eos_token_id if target.absorbs_eos else None,
            observed=None if config.observed is None else config.observed.tolist(),
        )
