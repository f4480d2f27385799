"""One mutable object: a run that can be stepped, interrupted, continued and rewound."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

from tsmc_widgets.errors import AllParticlesDeadError, check_flag, check_integer, check_kind
from tsmc_widgets.smc.memory import check_run
from tsmc_widgets.smc.sampler import init, step
from tsmc_widgets.smc.state import SMCConfig, SMCState, StepRecord
from tsmc_widgets.smc.trace import SMCTrace, TraceInfo
from tsmc_widgets.targets.target import Target, check_target


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
            error.trace = self.trace
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
