"""A run that can be stepped, interrupted and rewound; forward SMC and conditional SMC.

Forward SMC gives lower bounds on log Z, conditional SMC upper ones.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.errors import (
    AllParticlesDeadError,
    check_flag,
    check_integer,
    check_kind,
    quoted,
)
from tsmc_widgets.smc.memory import check_run
from tsmc_widgets.smc.noise import AddressedNoise
from tsmc_widgets.smc.proposals import Proposal, as_proposal
from tsmc_widgets.smc.resampling import Never, ResampleRule, resolve_rule
from tsmc_widgets.smc.sampler import init, step
from tsmc_widgets.smc.state import SMCConfig, SMCState, StepRecord
from tsmc_widgets.smc.trace import SMCTrace, TraceInfo
from tsmc_widgets.targets.checked import as_ids
from tsmc_widgets.targets.exact_samples import ExactSamples, JointSamples
from tsmc_widgets.targets.target import Target, check_target, require_unconditional
from tsmc_widgets.twists.protocol import Twist


class SMCSession:
    """A run in progress. An error or an interrupt loses no recorded step: call ``run`` again."""

    def __init__(self, target: Target, config: SMCConfig) -> None:
        """Prepare a run; the first call of ``step`` reads the prompt.

        Args:
            target: what to sample.
            config: how to sample it.

        Raises:
            MemoryLimitError: the runs would not fit the memory.
        """
        check_target(target)
        check_kind("config", config, SMCConfig, "an SMCConfig")
        check_run(target, config)
        self.target = target
        self.config = config
        # Known before the run, so that a trace can be given out when nothing else can be computed.
        self._info = TraceInfo.of(target, config)
        # State and records change together, in one assignment, so that an interrupt between any
        # two operations finds either the step before or the step after.
        self._progress: tuple[SMCState | None, tuple[StepRecord, ...]] = (None, ())

    @property
    def t(self) -> int:
        """Steps done."""
        state = self._progress[0]
        return 0 if state is None else state.t

    @property
    def done(self) -> bool:
        """Whether all T steps have been taken."""
        return self.t == self.target.num_steps

    @property
    def state(self) -> SMCState | None:
        """What the next step starts from; None before the prompt has been read."""
        return self._progress[0]

    @property
    def trace(self) -> SMCTrace:
        """Everything recorded so far."""
        return SMCTrace.from_records(self._progress[1], self.target, self.config, self._info)

    def step(self) -> StepRecord:
        """Take the next step.

        Raises:
            AllParticlesDeadError: all weights of a run are zero; the step stays on record, the run
                stays where it was before it.
        """
        state, records = self._progress
        if state is None:
            state = init(self.target, self.config)
            self._progress = (state, records)
        try:
            new_state, record = step(state, self.target, self.config)
        except AllParticlesDeadError as error:
            self._progress = (state, (*records[: state.t], error.record))
            raise
        self._progress = (new_state, (*records[: state.t], record))
        if self.done and self.config.dead_runs == "warn":
            _warn_of_dead_runs(new_state)
        return record

    def run(
        self, *, on_step: Callable[[StepRecord], object] | None = None, progress: bool = False
    ) -> SMCTrace:
        """Take all steps that are left and return the trace.

        An exception of any kind, Ctrl-C included, carries the trace so far as ``error.trace``, also
        where memory has run out: a trace stacks its columns when they are first read.

        Args:
            on_step: called with each record.
            progress: whether to show a bar with tokens a second and distinct prefixes.
        """
        check_flag("progress", progress)
        try:
            with self._bar() if progress else contextlib.nullcontext() as show:
                while not self.done:
                    record = self.step()
                    if show is not None:
                        show(record)
                    if on_step is not None:
                        on_step(record)
            return self.trace
        except BaseException as error:
            error.trace = self.trace  # type: ignore[attr-defined]
            raise

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[StepRecord], None]]:
        """Yield a function that takes each record; the bar closes however the loop ends."""
        from tqdm.auto import tqdm

        begun, first = time.perf_counter(), self.t

        def show(record: StepRecord) -> None:
            tokens = (record.t - first) * record.tokens.numel()
            rate = f"{tokens / (time.perf_counter() - begun):,.0f}"
            words = {"tokens/s": rate, "distinct prefixes": record.distinct}
            bar.set_postfix(words, refresh=False)
            bar.update()

        total = self.target.num_steps
        with tqdm(total=total, initial=first, desc="SMC", unit="step") as bar:
            yield show

    def rewind(self, t: int) -> None:
        """Go back to just after step ``t``; the steps from there come out the same to the byte.

        Earlier states keep no caches, so the run is retraced from the prompt: the same operations
        on the same batches, where one long prefill would round differently.
        """
        check_integer("t", t, at_least=0)
        if t > self.t:
            raise ValueError(f"cannot rewind to step {t}: only {self.t} have been taken.")
        records = self._progress[1][:t]
        # What was taken before fits, though this run itself now fills the memory.
        state = init(self.target, replace(self.config, memory_limit=math.inf))
        for _ in range(t):
            state, _ = step(state, self.target, self.config)
        self._progress = (state, records)


def _warn_of_dead_runs(state: SMCState) -> None:
    dead = int((state.log_z == -math.inf).sum())
    if dead:
        warnings.warn(
            f"{dead} of {state.log_z.shape[0]} runs died: all their weights are zero, so they "
            "count as Z_hat = 0 (log_z = -inf). Try a twist, more particles or a softer potential; "
            'dead_runs="keep" does not warn, dead_runs="raise" stops at the first.',
            RuntimeWarning,
            stacklevel=5,  # Where run_smc was called.
        )


_OPTIONS = {"first_run", "noise", "top_k", "dead_runs", "retained", "observed", "memory_limit"}


def start_smc(
    target: Target,
    *,
    num_particles: int,
    num_runs: int | None = None,
    proposal: Proposal | None = None,
    twist: Twist | None = None,
    resampler: str = "systematic",
    rule: str | ResampleRule | None = None,
    ess_threshold: float | None = None,
    seed: int = 0,
    **options: Any,
) -> SMCSession:
    """Prepare a run to be stepped by hand; takes what ``run_smc`` takes, but ``progress``."""
    _check_options(options)
    observed = options["observed"] = check_observed(target, options.get("observed"))
    if num_runs is None:
        num_runs = 1 if observed is None else observed.shape[0]
    if rule is None and ess_threshold is None and as_proposal(proposal).proposal_only:
        rule = Never()
    options.setdefault("noise", AddressedNoise(seed, num_runs, options.pop("first_run", 0)))
    config = SMCConfig(
        num_particles=num_particles,
        num_runs=num_runs,
        proposal=as_proposal(proposal),
        twist=twist,
        resampler=resampler,
        rule=resolve_rule(rule, ess_threshold),
        **options,
    )
    _check_proposal(target, config)
    return SMCSession(target, config)


def run_smc(
    target: Target,
    *,
    num_particles: int,
    num_runs: int | None = None,
    proposal: Proposal | None = None,
    twist: Twist | None = None,
    resampler: str = "systematic",
    rule: str | ResampleRule | None = None,
    ess_threshold: float | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> SMCTrace:
    """Sample sigma by twisted SMC; E[exp(log_z)] = Z, so the mean of log_z is a lower bound.

    The equality takes q and psi_t > 0 on every prefix of every text that sigma allows; the bound
    holds for any.

    Args:
        target: what to sample.
        num_particles: K.
        num_runs: R independent runs in one batch; None is one, or one for each observation.
        proposal: where tokens are drawn from; None is the base model.
        twist: psi_t; None is psi = 1, which leaves every decision to phi at T. Sequences that end
            before it have phi at once, beside psi = 1 of the others, so that a constant in log phi
            changes what is resampled: with an absorbing EOS give a twist of phi's scale, or
            rule="never", where phi is far from 1.
        resampler: multinomial, residual, stratified or systematic.
        rule: always, never, ess or a ``ResampleRule`` such as ``EveryNSteps(2)``.
        ess_threshold: short for the rule ESS < ess_threshold * K; 0.5 where neither is given, but
            never where the proposal follows a twist that can only propose (learned by DPG or PPO).
        seed: address of the noise; equal arguments give equal bytes.
        progress: whether to show a bar with tokens a second and distinct prefixes.
        **options: first_run (address of the first run), noise, top_k (next tokens to record),
            dead_runs ("raise", "keep" or "warn") and memory_limit (bytes), as in ``SMCConfig``; and
            observed (runs, width), where the target waits for an observation: one for each run,
            whose particles all run under it. Proposal and twist may be conditional too.

    Returns:
        The trace; ``trace.log_z`` is a float for one run and has shape (R,) for several.

    Raises:
        AllParticlesDeadError: all weights of the one run are zero; of several runs those that
            die stay in the trace as log Z_hat = -inf, and a warning counts them. Any exception,
            Ctrl-C included, carries what was recorded as ``error.trace``.
        MemoryLimitError: by estimate the batch does not fit the memory; nothing was begun.
    """
    session = start_smc(
        target,
        num_particles=num_particles,
        num_runs=num_runs,
        proposal=proposal,
        twist=twist,
        resampler=resampler,
        rule=rule,
        ess_threshold=ess_threshold,
        seed=seed,
        **options,
    )
    return session.run(progress=progress)


def run_conditional_smc(
    target: Target,
    *,
    retained: Any,
    num_particles: int,
    num_runs: int | None = None,
    proposal: Proposal | None = None,
    twist: Twist | None = None,
    resampler: str = "multinomial",
    rule: str | ResampleRule | None = None,
    ess_threshold: float | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> SMCTrace:
    """SMC with one exact sample of sigma in slot 0: the mean of log_z is an upper bound on log Z.

    The bound needs q and psi_t to be positive on every prefix of every text that sigma allows. Then
    E[exp(-log_z)] = P(a forward run survives) / Z, which is 1/Z where no weight can be zero. A
    twist or q that is zero on some of sigma's texts bounds nothing: samples that meet a zero are
    refused, and those that do not bound only Z times sigma's mass of such texts.

    Args:
        target: what to sample.
        retained: exact samples of sigma (runs, steps), one for each run, without the prompt; a
            tensor, a list, or what ``target.exact_samples`` gives, observations included.
        num_particles: K, the retained path included.
        num_runs: R, which is the number of retained samples; None takes it from them.
        proposal: as for ``run_smc``.
        twist: as for ``run_smc``.
        resampler: multinomial; the other schemes are biased here and refused.
        rule: as for ``run_smc``.
        ess_threshold: as for ``run_smc``.
        seed: as for ``run_smc``.
        progress: as for ``run_smc``.
        **options: as for ``run_smc``.

    Returns:
        The trace of as many runs as there are retained samples.

    Raises:
        ValueError: a sample of the wrong shape, with phi = 0, or on which psi_t or q is zero.
    """
    observed = options.pop("observed", None)
    if isinstance(retained, JointSamples) and observed is None:
        observed = retained.observed
    if isinstance(retained, ExactSamples | JointSamples):
        retained = retained.tokens
    observed = check_observed(target, observed)
    retained = _check_retained(target, retained, observed)
    if num_runs is not None and check_integer("num_runs", num_runs) != retained.shape[0]:
        raise ValueError(
            f"num_runs must be the number of retained samples, {retained.shape[0]}, or left out; "
            f"got {num_runs}."
        )
    return start_smc(
        target,
        num_particles=num_particles,
        num_runs=retained.shape[0],
        proposal=proposal,
        twist=twist,
        resampler=resampler,
        rule=rule,
        ess_threshold=ess_threshold,
        seed=seed,
        retained=retained,
        observed=observed,
        **options,
    ).run(progress=progress)


def _check_options(options: Mapping[str, Any]) -> None:
    """Suggest the closest keyword for one that there is not."""
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        known = sorted({*inspect.signature(run_smc).parameters, *_OPTIONS} - {"target", "options"})
        near = difflib.get_close_matches(unknown[0], known, n=1)
        if unknown[0] == "progress":
            raise TypeError("start_smc shows no bar: give progress=True to its session's run.")
        hint = f": did you mean {near[0]}?" if near else f"; it has {', '.join(known)}."
        raise TypeError(f"run_smc has no keyword {quoted(unknown[0])}{hint}")


def _check_proposal(target: Target, config: SMCConfig) -> None:
    follows = config.proposal.follows_twist
    if follows and config.twist is None and target.log_phi_next is None:
        raise ValueError(
            "TwistInduced() follows the sampler's twist and none was given: pass twist=..., or "
            "TwistInduced(other_twist), or proposal=Base()."
        )


def check_observed(target: Target, observed: Any) -> Int[Tensor, "runs width"] | None:
    """One observation for each run, on the target's device; None where it waits for none.

    Raises:
        ValueError: an observation is missing, of another shape, or given to a target that waits
            for none.
    """
    check_target(target)
    if not target.is_conditional:
        if observed is not None:
            what = target.potential.describe()
            raise ValueError(f"{what} waits for no observation, and observed was given.")
        return None
    if observed is None:
        require_unconditional(
            target,
            "sample target.condition(observed) for one of them, or give observed=, one for each "
            "run.",
        )
    rows = as_ids("observed", observed, device=target.prompt_tokens.device)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(
            "observed must hold integers of shape (num_runs, width), one observation for each run, "
            f"such as target.exact_samples(n, seed=0).observed; got {tuple(rows.shape)}."
        )
    check_integer("smallest entry of observed", int(rows.min()), at_least=0)
    target.potential.condition(rows[0])  # Says at once what else is wrong with an observation.
    return rows


def _check_retained(
    target: Target, retained: Any, observed: Int[Tensor, "runs width"] | None = None
) -> Int[Tensor, "runs steps"]:
    retained = as_ids("retained", retained, device=target.prompt_tokens.device)
    if retained.ndim != 2 or retained.shape[1] != target.num_steps or not retained.shape[0]:
        raise ValueError(
            f"retained must have shape (num_runs, {target.num_steps}), one exact sample of "
            f"{target.num_steps} tokens for each run; got {tuple(retained.shape)}."
        )
    check_integer("smallest token of retained", int(retained.min()), at_least=0)
    if int(retained.max()) >= target.lm.vocab_size:
        raise ValueError(
            f"retained holds token {int(retained.max())}; the model has {target.lm.vocab_size}."
        )
    if target.ending is not None and not torch.equal(target.ending.filled(retained), retained):
        raise ValueError(
            f"retained goes on after its EOS (token {target.eos_token_id}): with an absorbing EOS "
            "every token after the end must be EOS."
        )
    if observed is None:
        log_phi = target.log_phi(retained)
    elif len(observed) != len(retained):
        raise ValueError(
            f"observed must hold one observation for each of the {len(retained)} retained "
            f"samples; got {len(observed)}."
        )
    else:
        log_phi = target.log_phi_given(retained, observed)
    impossible = (log_phi == -math.inf).nonzero()
    if impossible.shape[0]:
        row = int(impossible[0, 0])
        text = target.labels(retained[row : row + 1])[0]
        raise ValueError(
            f"retained must hold exact samples of sigma; row {row}, {quoted(text)}, has phi = 0, "
            "so it "
            "is none. Take target.exact_samples(...) or tw.exact(target).sample(...)."
        )
    return retained
