"""SMCConfig, SMCState and StepRecord."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_kind, check_number, check_one_of, quoted, set_integers
from tsmc_widgets.smc.noise import AddressedNoise, Noise
from tsmc_widgets.smc.prefixes import NextTokenTable, PrefixSteps
from tsmc_widgets.smc.proposals import Base, as_proposal
from tsmc_widgets.smc.resampling import SCHEMES, ESSBelow, ResampleRule, check_rule
from tsmc_widgets.twists.protocol import as_twist


@dataclass(frozen=True, slots=True, kw_only=True)
class SMCConfig:
    """How to sample: everything but the target.

    Attributes:
        num_particles: K.
        num_runs: R, the runs of one batch; independent of each other.
        proposal: where tokens are drawn from.
        twist: psi_t; None is psi = 1.
        resampler: a scheme of ``resampling.SCHEMES``.
        rule: when to resample.
        noise: where uniforms come from.
        retained: exact samples of sigma that sit in slot 0 of each run (conditional SMC); or None.
        observed: one observation o for each run, where the target waits for one; or None.
        top_k: how many next tokens each step records for every distinct prefix; 0 records none.
        dead_runs: what to do when all weights of a run are zero. "raise" stops; "keep" goes on
            with the other runs and gives log Z_hat = -inf for this one; "warn" does too and warns
            once at the end. None is "warn" for several runs and "raise" for one. In conditional SMC
            none can die: a retained sample of weight zero is an error.
        memory_limit: bytes that the batch may take by estimate; None is half of what is free, or
            what ``allow_memory`` says.
    """

    num_particles: int
    num_runs: int = 1
    proposal: Any = field(default_factory=Base)
    twist: Any = None
    resampler: str = "systematic"
    rule: ResampleRule = field(default_factory=ESSBelow)
    noise: Noise | None = None
    retained: Int[Tensor, "runs steps"] | None = None
    observed: Int[Tensor, "runs width"] | None = None
    top_k: int = 0
    dead_runs: str | None = None
    memory_limit: float | int | None = None

    def __post_init__(self) -> None:
        """Check the values against each other."""
        set_integers(self, num_particles=1, num_runs=1, top_k=0)
        check_one_of("resampler", self.resampler, sorted(SCHEMES))
        if self.dead_runs is None:
            object.__setattr__(self, "dead_runs", "raise" if self.num_runs == 1 else "warn")
        check_one_of("dead_runs", self.dead_runs, ("raise", "keep", "warn"))
        if self.memory_limit is not None:
            check_number("memory_limit", self.memory_limit, "(0, inf]")
        object.__setattr__(self, "twist", as_twist(self.twist))
        object.__setattr__(self, "proposal", as_proposal(self.proposal))
        if self.twist is not None and self.twist.proposal_only:
            raise ValueError(
                f"a twist learned by {self.twist.method} is known only up to a function of the "
                "prefix, so it cannot weigh particles: pass proposal=TwistInduced(twist) and "
                "leave twist=None."
            )
        check_rule(self.rule)
        if self.noise is None:
            object.__setattr__(self, "noise", AddressedNoise(0, self.num_runs))
        check_kind("noise", self.noise, ("uniform",), "an object such as AddressedNoise")
        self._check_one_for_each_run("observed", "observation")
        self._check_one_for_each_run("retained", "sample")
        if self.retained is not None and self.resampler != "multinomial":
            raise ValueError(
                "resampler must be multinomial in conditional SMC, where plain stratified, "
                f"systematic and residual resampling are biased; got {quoted(self.resampler)}."
            )

    def _check_one_for_each_run(self, name: str, what: str) -> None:
        rows = getattr(self, name)
        if rows is None:
            return
        check_kind(name, rows, Tensor, f"a tensor of integers, one {what} for each run")
        if not rows.ndim or rows.shape[0] != self.num_runs:
            raise ValueError(
                f"{name} must hold one {what} for each of the {self.num_runs} runs; "
                f"got {rows.shape[0]}."
            )


@dataclass(frozen=True, slots=True)
class SMCState:
    """What the next step needs.

    Attributes:
        t: steps done.
        tokens: generated tokens of each particle's path.
        log_weights: after step t, before resampling.
        log_psi: log psi_t (log phi where a particle has ended) of each path.
        log_z: running log Z_hat.
        ess: effective sample size of the weights.
        finished: paths ended by an absorbing EOS.
        rows: each particle's place among the distinct prefixes of ``steps``.
        steps: the models' answers for the distinct prefixes: derived data, rebuilt when None.
    """

    t: int
    tokens: Int[Tensor, "runs particles t"]
    log_weights: Float[Tensor, "runs particles"]
    log_psi: Float[Tensor, "runs particles"]
    log_z: Float[Tensor, " runs"]
    ess: Float[Tensor, " runs"]
    finished: Bool[Tensor, "runs particles"]
    rows: Int[Tensor, "runs particles"]
    steps: PrefixSteps | None

    def __reduce__(self) -> tuple:
        """Pickle without the models' answers, which a step rebuilds."""
        return SMCState, (*(getattr(self, name) for name in self.__slots__[:-1]), None)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step did; never needed to go on.

    Attributes:
        t: the step, 1..T.
        resampled: which runs resampled before it.
        ancestors: slot at t-1 that each slot descends from.
        tokens: s_t of each particle.
        log_p: log p0(s_t | s_{<t}), times the target's power; 0 after an absorbing EOS.
        log_q: log q(s_t | s_{<t}); 0 after an absorbing EOS.
        log_psi: log psi_t(s_{1:t}); log phi at T and where a particle has ended.
        log_increment: log of the incremental weight.
        log_weights: cumulative since the last resampling.
        ess: effective sample size, in [1, K]; 0 where all weights are zero.
        log_z: running log Z_hat.
        distinct: distinct prefixes that the models answered for.
        table: the likeliest next tokens before s_t was drawn, where asked for.
    """

    t: int
    resampled: Bool[Tensor, " runs"]
    ancestors: Int[Tensor, "runs particles"]
    tokens: Int[Tensor, "runs particles"]
    log_p: Float[Tensor, "runs particles"]
    log_q: Float[Tensor, "runs particles"]
    log_psi: Float[Tensor, "runs particles"]
    log_increment: Float[Tensor, "runs particles"]
    log_weights: Float[Tensor, "runs particles"]
    ess: Float[Tensor, " runs"]
    log_z: Float[Tensor, " runs"]
    distinct: int
    table: NextTokenTable | None
