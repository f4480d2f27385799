"""Events that a run, a file or a page has to outlive; each function raises where it does not.

``benchmarks/faults.py`` counts them beside the bad inputs.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import os
import signal
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import reduce
from multiprocessing import get_context
from operator import mul
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import tsmc_widgets as tw
from tsmc_widgets.errors import (
    BudgetError,
    MemoryLimitError,
    ModelOutputError,
    PotentialError,
    TraceFormatError,
    TwistFormatError,
)
from tsmc_widgets.experiments.runs import WorkerLostError
from tsmc_widgets.files import write_atomically

Event = Callable[[], None]
EVENTS: list[Event] = []


def event(function: Event) -> Event:
    """Count a function among the events."""
    EVENTS.append(function)
    return function


@contextlib.contextmanager
def must_raise(*kinds: type[BaseException]) -> Any:
    """Pass where the block raises one of these, and raise where it does not."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"nothing was raised, and {kinds} was due")


def require(holds: bool, what: str) -> None:
    """Raise where something that was promised does not hold."""
    if not holds:
        raise AssertionError(what)


def toy() -> tw.Target:
    """A target of five steps."""
    return tw.load_problem("rainy-week").target()


def full_disk(*_: Any, **__: Any) -> None:
    """What writing does where there is no room."""
    raise OSError(errno.ENOSPC, "no space left on device")


def spec(**changes: Any) -> tw.RunSpec:
    """A short run."""
    usual: dict[str, Any] = {"problem": "rainy-week", "num_particles": 2, "num_runs": 2}
    return tw.RunSpec(**usual | {"num_exact": 0} | changes)


@event
def an_interrupt_within_a_run() -> None:
    """What was recorded is at hand, and the session goes on from there."""
    session = tw.start_smc(toy(), num_particles=4)

    def stop(record: Any) -> None:
        if record.t == 2:
            raise KeyboardInterrupt

    try:
        session.run(on_step=stop)
    except KeyboardInterrupt as error:
        stopped: Any = error
        require(stopped.trace.steps_done == 2, "the interrupt carries no trace")
    require(session.run().done, "the run does not go on")


@event
def a_function_that_ends_the_program() -> None:
    """SystemExit of a potential is an error of the potential."""

    def leave(text: str) -> float:
        raise SystemExit(text)

    target = tw.Target(toy().lm, tw.TextFunction(leave), prompt="", num_steps=2)
    with must_raise(PotentialError):
        tw.run_smc(target, num_particles=2)


@event
def a_spec_that_ends_the_program() -> None:
    """It is a stored error, and the next spec runs."""
    with mock.patch("tsmc_widgets.experiments.execute.measure", side_effect=SystemExit("left")):
        failed = list(tw.map_runs([spec()]))
    require(failed[0].error is not None, "SystemExit is no error")
    require(next(tw.map_runs([spec()])).error is None, "nothing runs any more")


@event
def a_killed_worker() -> None:
    """What was done is stored, what was not is named, and a second call does the rest."""
    specs = [spec(seed=seed) for seed in range(8)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        stream = tw.map_runs(specs, executor, "results")
        next(stream)
        os.kill(next(iter(executor._processes)), signal.SIGKILL)
        with contextlib.suppress(WorkerLostError):
            list(stream)
    done = list(tw.map_runs(specs, None, "results"))
    require(len(done) == 8 and any(result.stored for result in done), "what was done is lost")


@event
def a_full_disk_under_a_file() -> None:
    """The file of before stays, and nothing is left beside it."""
    trace = tw.run_smc(toy(), num_particles=4)
    path = trace.save("run")
    before = path.read_bytes()
    for write in (lambda: trace.save("run"), lambda: _write(path)):
        with mock.patch.object(Path, "replace", full_disk), must_raise(OSError):
            write()
        require(path.read_bytes() == before, "the file of before is gone")
        require(not list(Path().glob("*.part")), "a part of a file is left")


def _write(path: Path) -> None:
    with write_atomically(path) as part:
        part.write_bytes(b"half")
        full_disk()


@event
def a_full_disk_under_a_stream() -> None:
    """Rows come back unstored."""
    with mock.patch("tsmc_widgets.experiments.runs.ResultFolder.write", full_disk):
        found = list(tw.map_runs([spec()], None, "results"))
    require(bool(found[0].rows), "the result is lost")


@event
def a_flipped_bit_in_a_trace() -> None:
    """It is refused, or harmless: a time in the archive's head, say."""
    trace = tw.run_smc(toy(), num_particles=4)
    path = trace.save("run")
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with contextlib.suppress(TraceFormatError):
            read = tw.SMCTrace.load(path).columns
            for name in ("tokens", "log_weights", "log_psi"):
                same = torch.equal(getattr(read, name), getattr(trace.columns, name))
                require(same, "another trace was read")


@event
def a_flipped_bit_in_a_twist() -> None:
    """It is refused."""
    target = toy()
    twist = tw.TableHeadTwist(target.lm, num_steps=target.num_steps)
    for path in sorted(tw.save_twist(twist, "twist").iterdir()):
        data = path.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 20)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with must_raise(TwistFormatError):
                tw.load_twist("twist", target.lm)
        path.write_bytes(data)


@event
def a_file_that_names_a_function_to_import() -> None:
    """It is refused, and nothing is imported."""
    described = {
        "name": "x", "model": "table:rainy-week", "prompt": "", "num_steps": 2,
        "potential": {"kind": "TextFunction", "function": "os:system"},
    }  # fmt: skip
    text = json.dumps({**spec().to_dict(), "problem": described})
    require("not registered" in str(_error_of(text)), "the function was found")


def _error_of(text: str) -> BaseException | None:
    try:
        found = next(tw.map_runs([tw.RunSpec.from_json(text)]))
    except ValueError as error:
        return error
    return None if found.error is None else ValueError(found.error["message"])


@event
def a_text_that_no_encoding_has() -> None:
    """A spec with a lone surrogate is an error or a result, and the stream goes on."""
    described = tw.RunSpec(problem={
        "name": "\ud800", "model": "table:rainy-week", "prompt": "", "num_steps": 2,
        "potential": {"kind": "Constant"},
    }, num_particles=2, num_runs=2, num_exact=0)  # fmt: skip
    require(len(list(tw.map_runs([described, spec()], None, "results"))) == 2, "the stream ended")


@event
def more_particles_than_memory() -> None:
    """Refused before anything is begun."""
    for size in (10**12, 2**62):
        with must_raise(MemoryLimitError):
            tw.run_smc(toy(), num_particles=size)


@event
def an_automaton_of_two_to_the_n_states() -> None:
    """Refused at once."""
    size = 20
    lm = tw.TabularLM.markov([1 / size] * size, [[1 / size] * size] * size)
    phi = reduce(mul, [tw.ContainsToken(token) for token in range(16)])
    with must_raise(BudgetError):
        tw.exact(tw.Target(lm, phi, prompt="", num_steps=40))


@event
def a_pattern_that_takes_for_ever() -> None:
    """Told within a second or two."""
    phi = tw.MatchesRegex("^(a|aa)+$")
    with must_raise(PotentialError):
        phi.log_phi_of_texts(["a" * 60 + "!"])


@event
def a_model_that_gives_nan() -> None:
    """Named, with the step and the text."""
    target = toy()
    plain = type(target.lm).prefill

    def spoiled(lm: Any, tokens: torch.Tensor) -> Any:
        step = plain(lm, tokens)
        return replace(step, log_probs=torch.full_like(step.log_probs, math.nan))

    with mock.patch.object(type(target.lm), "prefill", spoiled), must_raise(ModelOutputError):
        tw.run_smc(target, num_particles=2)


@event
def a_potential_that_writes_into_its_tokens() -> None:
    """The factor after it reads what was sampled."""

    def spoil(tokens: torch.Tensor) -> torch.Tensor:
        tokens.zero_()
        return torch.zeros(len(tokens))

    first, second = tw.TokenFunction(spoil), tw.ContainsToken(1)
    lm, tokens = toy().lm, torch.tensor([[1, 1], [2, 2]])
    values = [
        tw.Target(lm, phi, prompt="", num_steps=2).log_phi(tokens.clone())
        for phi in (first * second, second * first)
    ]
    require(torch.equal(*values), "phi_a * phi_b is not phi_b * phi_a")


@event
def a_closed_page() -> None:
    """Nothing of it stays."""
    page = tw.Workbench("rainy-week", num_particles=4)
    page.wait(60)
    page.close()
    gone = weakref.ref(page)
    del page
    gc.collect()
    require(gone() is None, "the page is still there")


@event
def a_page_whose_function_ends_the_program() -> None:
    """The status says so, and the page runs again."""

    def leave(text: str) -> float:
        raise SystemExit("left")

    tw.register_function(leave)
    page = tw.Workbench("rainy-week", num_particles=4)
    described = {"kind": "TextFunction", "function": "leave"}
    for potential, failed in ((described, True), ({"kind": "Constant"}, False)):
        page.set(problem={
            "name": "x", "model": "table:rainy-week", "prompt": "", "num_steps": 2,
            "potential": potential,
        })  # fmt: skip
        require(page.wait(60), "the page never answers")
        require(bool(page.view.status.get("error")) == failed, "the status is wrong")
    page.close()
