"""A recorded run under another potential: weighed anew where that is the run itself, else run.

In a run phi is heard in four places: by psi and q where these are made of phi; by q at step T where
it follows psi and phi offers log phi of all next tokens; in the weight of a text that ends before T
by an absorbing EOS; and in the weights at T. Where the first two are out, tokens depend on phi only
through the resampling decisions, and these only through texts that ended. So the sampler's own
arithmetic is taken over the record with the new phi, and every decision is taken again on the same
noise. Where all of them (whether to resample, and whom) are as recorded, the fresh run has the same
particles, and what was computed is its trace to the byte. The sampler resamples before a step, so
that before step T it looks at the weights of T - 1: without an absorbing EOS no decision changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from tsmc_widgets.errors import AllParticlesDeadError, TsmcError
from tsmc_widgets.smc import sampler
from tsmc_widgets.smc.session import SMCSession
from tsmc_widgets.smc.state import SMCConfig, SMCState, StepRecord
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target


class CannotReweighError(TsmcError, ValueError):
    """A record does not tell what a run under the new potential would be; says why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A run that was made, and of what.

    Attributes:
        trace: its record.
        target: what was sampled.
        config: how.
    """

    trace: SMCTrace
    target: Target
    config: SMCConfig


def reweigh(recording: Recording, target: Target, config: SMCConfig) -> SMCTrace:
    """The trace that a fresh run of ``target`` would give, from the record of another potential.

    No model is asked. Psi and q must be the very objects of the record, and not have learned since.

    Raises:
        CannotReweighError: a fresh run would differ in more than weights; says in what.
        AllParticlesDeadError: the fresh run would raise it too; ``error.trace`` holds its steps.
    """
    for differs in CONDITIONS.values():
        reason = differs(recording, target, config)
        if reason:
            raise CannotReweighError(reason)
    state, records = sampler.unread(target, config), []
    try:
        for _ in range(target.num_steps):
            state, record = _step(recording.trace, state, target, config)
            records.append(record)
            sampler.check_alive(record, target, config)
    except AllParticlesDeadError as error:
        error.trace = SMCTrace.from_records(records, target, config)
        raise
    return SMCTrace.from_records(records, target, config)


def _step(
    trace: SMCTrace, state: SMCState, target: Target, config: SMCConfig
) -> tuple[SMCState, StepRecord]:
    """One step of the sampler with tokens, log p, log q and log psi as recorded."""
    t, final = state.t + 1, state.t + 1 == target.num_steps
    device = state.log_weights.device

    def recorded(name: str) -> Tensor:
        return getattr(trace.columns, name)[:, t - 1].to(device)

    due, ancestors = sampler.choose_ancestors(state, config, t)
    _check_decisions(due, ancestors, recorded, t)
    state = sampler.resampled(state, due, ancestors)
    tokens, log_p, log_q = recorded("tokens"), recorded("log_p"), recorded("log_q")
    paths = torch.cat([state.tokens, tokens.unsqueeze(-1)], dim=-1)
    live = ~state.finished
    ends = sampler.ending(target, tokens, live)
    log_psi = torch.where(state.finished, state.log_psi, recorded("log_psi"))
    log_psi = _put_phi(target, live if final else ends, paths, log_psi)
    log_increment, log_weights, log_z, ess = sampler.weigh(state, log_p, log_q, log_psi, t)
    record = StepRecord(
        t, due, ancestors, tokens, log_p, log_q, log_psi, log_increment, log_weights, ess, log_z,
        int(trace.columns.distinct[t - 1]), trace.tables[t - 1] if config.top_k else None,
    )  # fmt: skip
    finished = state.finished | ends
    return SMCState(t, paths, log_weights, log_psi, log_z, ess, finished, state.rows, None), record


def _check_decisions(
    due: Tensor, ancestors: Tensor, recorded: Callable[[str], Tensor], t: int
) -> None:
    if not torch.equal(due, recorded("resampled")):
        raise CannotReweighError(
            "texts that ended before T are weighed by φ when they end, and under this φ the run "
            f"would{'' if bool(due.any()) else ' not'} resample before step {t}"
        )
    if not torch.equal(ancestors, recorded("ancestors")):
        raise CannotReweighError(
            "texts that ended before T are weighed by φ when they end, and under this φ other "
            f"particles would be resampled before step {t}"
        )


def _put_phi(target: Target, where: Tensor, paths: Tensor, log_psi: Tensor) -> Tensor:
    members = where.reshape(-1).nonzero().squeeze(1)
    if members.shape[0] == 0:
        return log_psi
    # Target.log_phi asks the potential for the distinct rows in order: the batch of a fresh run.
    texts = sampler.whole_texts(target, paths, members)
    flat = log_psi.reshape(-1).clone()
    flat[members] = target.log_phi(texts).to(flat)
    return flat.reshape(log_psi.shape)


def _whole(recording: Recording, target: Target, config: SMCConfig) -> str:
    return "" if recording.trace.done else "the run on record did not reach its last step"


def _model(recording: Recording, target: Target, config: SMCConfig) -> str:
    return "" if recording.target.lm is target.lm else "the model is another"


def _prompt(recording: Recording, target: Target, config: SMCConfig) -> str:
    same = torch.equal(recording.target.prompt_tokens, target.prompt_tokens)
    return "" if same else "the prompt is another"


def _length(recording: Recording, target: Target, config: SMCConfig) -> str:
    return "" if recording.target.num_steps == target.num_steps else "T is another"


def _eos(recording: Recording, target: Target, config: SMCConfig) -> str:
    same = recording.target.absorbs_eos == target.absorbs_eos
    return "" if same else "what EOS does is another"


def _observations(recording: Recording, target: Target, config: SMCConfig) -> str:
    if recording.target.is_conditional or target.is_conditional:
        return "φ waits for an observation that each run has of its own"
    return ""


def _population(recording: Recording, target: Target, config: SMCConfig) -> str:
    old = recording.config
    same = (old.num_particles, old.num_runs) == (config.num_particles, config.num_runs)
    return "" if same else "K or R is another"


def _noise(recording: Recording, target: Target, config: SMCConfig) -> str:
    return "" if recording.config.noise == config.noise else "the noise is another"


def _resampling(recording: Recording, target: Target, config: SMCConfig) -> str:
    old = recording.config
    same = old.resampler == config.resampler and _same(old.rule, config.rule)
    return "" if same else "resampling is another"


def _twist(recording: Recording, target: Target, config: SMCConfig) -> str:
    same = _same(recording.config.twist, config.twist)
    return "" if same else "ψ is another, and steers the run from the first step on"


def _proposal(recording: Recording, target: Target, config: SMCConfig) -> str:
    same = _same(recording.config.proposal, config.proposal)
    return "" if same else "q is another, and draws other tokens"


def _last_step(recording: Recording, target: Target, config: SMCConfig) -> str:
    if not config.proposal.follows_twist:
        return ""
    if recording.target.log_phi_next is None and target.log_phi_next is None:
        return ""
    return "q draws the last token by φ itself"


def _written(recording: Recording, target: Target, config: SMCConfig) -> str:
    old = recording.config
    same = (old.top_k, old.dead_runs) == (config.top_k, config.dead_runs)
    return "" if same and old.retained is config.retained else "what is recorded is another"


CONDITIONS: dict[str, Callable[[Recording, Target, SMCConfig], str]] = {
    "whole": _whole,
    "model": _model,
    "prompt": _prompt,
    "length": _length,
    "eos": _eos,
    "observations": _observations,
    "population": _population,
    "noise": _noise,
    "resampling": _resampling,
    "twist": _twist,
    "proposal": _proposal,
    "last step": _last_step,
    "written": _written,
}
"""Each says in words what makes a record useless for a fresh run; "" where nothing does."""


def _same(old: Any, new: Any) -> bool:
    """Whether two parts are one, or of one class with the same things in each field."""
    if old is new:
        return True
    if type(old) is not type(new) or not is_dataclass(old):
        return False
    pairs = [(getattr(old, f.name), getattr(new, f.name)) for f in fields(old)]
    plain = (bool, int, float, str, type(None))
    return all(_same(a, b) or (isinstance(a, plain) and a == b) for a, b in pairs)


class ReplaySession:
    """A run that takes over what a recorded one did where it may, and else does it afresh.

    Steps as an ``SMCSession`` does; a run that is weighed anew is done after one.

    Args:
        target: what to sample.
        config: how.
        recording: the run before; None runs afresh.

    Attributes:
        reweighed: whether the record was weighed anew; None before the first step.
        why_not: what stood against it, in words.
    """

    def __init__(self, target: Target, config: SMCConfig, recording: Recording | None) -> None:
        self.target, self.config = target, config
        self.reweighed: bool | None = None
        self.why_not = ""
        self._recording = recording
        self._fresh = SMCSession(target, config)
        self._trace: SMCTrace | None = None
        self._dead: AllParticlesDeadError | None = None

    @property
    def t(self) -> int:
        """Steps done."""
        return self._fresh.t if self._trace is None else self._trace.steps_done

    @property
    def done(self) -> bool:
        """Whether all T steps have been taken."""
        return self._fresh.done if self._trace is None else self._trace.done

    @property
    def trace(self) -> SMCTrace:
        """Everything recorded so far."""
        return self._fresh.trace if self._trace is None else self._trace

    @property
    def recording(self) -> Recording:
        """This run for the next one to be weighed from."""
        return Recording(self.trace, self.target, self.config)

    def step(self) -> StepRecord | None:
        """Weigh the whole record anew, or take the next step of a fresh run."""
        if self.reweighed is None:
            recording, self._recording = self._recording, None
            self.reweighed = False
            if recording is not None:
                try:
                    self._trace = reweigh(recording, self.target, self.config)
                    self.reweighed = True
                    return None
                except CannotReweighError as error:
                    self.why_not = str(error)
                except AllParticlesDeadError as error:
                    self._trace, self._dead = error.trace, error
        if self._dead is not None:
            raise self._dead
        return self._fresh.step()

    def run(self) -> SMCTrace:
        """Take all steps that are left and return the trace."""
        while not self.done:
            self.step()
        return self.trace
