"""A recorded run under another potential: re-weighted where that gives the fresh run, else run.

phi enters a run in four places: in psi and q where these are made of phi; in q at step T where it
follows psi and phi offers log phi of all next tokens; in the weight of a path that ends before T by
an absorbing EOS; and in the weights at T. Without the first two, tokens depend on phi only through
the resampling decisions, and these only through paths that ended. So the sampler's own arithmetic
is applied to the record with the new phi, and every decision is taken again on the same noise.
Where all of them (whether to resample, and which ancestors) are as recorded, the fresh run has the
same particles, and the result is its trace to the byte. The sampler resamples before a step, so
that before step T it looks at the weights of T - 1: without an absorbing EOS no decision changes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tsmc_widgets.errors import AllParticlesDeadError, TsmcError
from tsmc_widgets.smc import sampler
from tsmc_widgets.smc.api import SMCSession
from tsmc_widgets.smc.prefixes import NextTokens
from tsmc_widgets.smc.state import SMCConfig, SMCState, StepRecord
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target


class CannotReweightError(TsmcError, ValueError):
    """A record does not determine the run under the new potential; says why."""


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


def conditions(old: Recording, target: Target, config: SMCConfig) -> list[tuple[bool, str]]:
    """What must hold for a re-weighted record to be the fresh run, and what to say if it does not.

    Psi and q must be the very objects of the record, and not have learned since.
    """
    was, how = old.target, old.config
    last_by_phi = config.proposal.follows_twist
    offers = was.log_phi_next is not None or target.log_phi_next is not None
    return [
        (old.trace.done, "the recorded run did not reach its last step"),
        (was.lm == target.lm, "the model differs"),
        (torch.equal(was.prompt_tokens, target.prompt_tokens), "the prompt differs"),
        (was.num_steps == target.num_steps, "num_steps differs"),
        (was.absorbs_eos == target.absorbs_eos, "what EOS does differs"),
        (was.stop == target.stop, "where texts stop differs"),
        (was.power == target.power, "the power of p0 differs"),
        (
            not (was.is_conditional or target.is_conditional),
            "φ waits for an observation, and each run has its own",
        ),
        (how.num_particles == config.num_particles, "num_particles differs"),
        (how.num_runs == config.num_runs, "num_runs differs"),
        (how.noise == config.noise, "the noise differs"),
        (
            how.resampler == config.resampler and _same(how.rule, config.rule),
            "the resampling differs",
        ),
        (_same(how.twist, config.twist), "ψ differs, and steers the run from the first step on"),
        (_same(how.proposal, config.proposal), "q differs, and draws other tokens"),
        (not (last_by_phi and offers), "q draws the last token by φ itself"),
        (
            (how.top_k, how.dead_runs) == (config.top_k, config.dead_runs)
            and how.retained is config.retained,
            "what is recorded differs",
        ),
    ]


class ReplaySession(SMCSession):
    """A session that re-weights a recorded run where that is valid, and else runs.

    A run that is re-weighted is done after one step.

    Args:
        target: what to sample.
        config: how.
        recording: the run before; None always runs.

    Attributes:
        reweighed: whether the record was re-weighted; None before the first step.
        why_not: why it was not, in words.
    """

    def __init__(self, target: Target, config: SMCConfig, recording: Recording | None) -> None:
        super().__init__(target, config)
        self.reweighed: bool | None = None
        self.why_not = ""
        self._recording = recording

    @property
    def recording(self) -> Recording:
        """This run for the next one to be re-weighted from."""
        return Recording(self.trace, self.target, self.config)

    def step(self) -> StepRecord:
        """Re-weight the whole record, or take the next step of a fresh run."""
        if self.reweighed is None:
            self.reweighed = False
            if self._recording is not None:
                try:
                    self.reweight()
                except CannotReweightError as error:
                    self.why_not = str(error)
                else:
                    self.reweighed = True
                    return self._progress[1][-1]
        return super().step()

    def reweight(self) -> None:
        """Take all steps of the fresh run from the record; no model is called.

        Raises:
            CannotReweightError: a fresh run would differ in more than weights; says in what.
            AllParticlesDeadError: the fresh run would raise it too; ``error.trace`` has its steps.
        """
        old, self._recording = self._recording, None
        for holds, reason in conditions(old, self.target, self.config):
            if not holds:
                raise CannotReweightError(reason)
        state, records = sampler.unread(self.target, self.config), []
        # Without a model each particle is a prefix of its own; the potential sees distinct ones.
        rows = torch.arange(state.rows.numel(), device=state.rows.device)
        state = replace(state, rows=rows.reshape(state.rows.shape))
        try:
            for _ in range(self.target.num_steps):
                after, record = _step(old.trace, state, self.target, self.config)
                records.append(record)
                sampler.check_alive(record, self.target, self.config)
                state = after
        except AllParticlesDeadError as error:
            self._progress = (state, tuple(records))
            error.trace = self.trace
            raise
        self._progress = (state, tuple(records))


def _step(
    trace: SMCTrace, state: SMCState, target: Target, config: SMCConfig
) -> tuple[SMCState, StepRecord]:
    """One step of the sampler with tokens, log p, log q and log psi as recorded."""
    t, device = state.t + 1, state.log_weights.device

    def recorded(name: str) -> Tensor:
        return getattr(trace.columns, name)[:, t - 1].to(device)

    due, ancestors = sampler.choose_ancestors(state, config, t)
    _check_decisions(due, recorded("resampled"), ancestors, recorded("ancestors"), t)
    state = sampler.resampled(state, due, ancestors)
    table = trace.tables[t - 1] if config.top_k else None
    tokens, log_p, log_q, log_psi = map(recorded, ("tokens", "log_p", "log_q", "log_psi"))
    drawn = NextTokens(tokens, log_p, log_q, log_psi, table)
    distinct = int(trace.columns.distinct[t - 1])
    return sampler.take(state, target, config, (due, ancestors), drawn, distinct)


def _check_decisions(due: Tensor, old_due: Tensor, chosen: Tensor, old: Tensor, t: int) -> None:
    changed = None
    if not torch.equal(due, old_due):
        changed = f"the run would{'' if bool(due.any()) else ' not'} resample"
    elif not torch.equal(chosen, old):
        changed = "other particles would be resampled"
    if changed is not None:
        raise CannotReweightError(
            "paths that end before T are weighted by φ when they end, and under this φ "
            f"{changed} before step {t}"
        )


def _same(old: Any, new: Any) -> bool:
    """Whether two parts are one object, or of one class with the same things in each field."""
    if old is new:
        return True
    if type(old) is not type(new) or not is_dataclass(old):
        return False
    pairs = [(getattr(old, f.name), getattr(new, f.name)) for f in fields(old)]
    plain = (bool, int, float, str, type(None))
    return all(_same(a, b) or (isinstance(a, plain) and a == b) for a, b in pairs)
