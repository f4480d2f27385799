"""Ctrl-C at random operations of a run, a training and a comparison: what is recorded stays."""

import contextlib
import random

import pytest
import torch
from interrupting import Interrupter
from learning.tables import unit_target
from learning.trainers import make_trainer, parameters
from smc.toys import differing, eos_target

import tsmc_widgets as tw
from tsmc_widgets.experiments import artifacts
from tsmc_widgets.experiments.execute import one_thread
from tsmc_widgets.learning.positives import ReplayedPositives

POINTS = [pytest.param(3), pytest.param(75, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]


def interrupts(act, count):
    """Yield ``count`` interrupts of ``act``, a function that makes its own world each time."""
    counter = Interrupter(operations=True)
    counter.during(act)
    points = random.Random(0).sample(range(1, counter.count + 1), count)
    for at in sorted(points):
        interrupter = Interrupter(at, operations=True)
        error = interrupter.during(act)
        # The number of operations varies with what is remembered, so that the last may not come.
        if isinstance(error, KeyboardInterrupt):
            yield error, interrupter.place


@pytest.mark.parametrize("count", POINTS)
def test_run(count):
    made = []

    def run():
        made.clear()
        target = eos_target(4)
        made.append(tw.start_smc(target, num_particles=5, num_runs=2, rule="always", top_k=2))
        return made[-1].run()

    whole = run()
    for error, place in interrupts(run, count):
        if not made:
            continue
        session = made[-1]
        trace = getattr(error, "trace", session.trace)
        assert trace.steps_done == session.t, place
        assert session.t == 0 or trace is error.trace, place
        for name in ("tokens", "log_weights", "ancestors", "log_z"):
            found, expected = (getattr(t.columns, name) for t in (trace, whole))
            assert torch.equal(found, expected[:, : session.t]), place
        assert differing(session.run(), whole) == [], place


@pytest.mark.parametrize("count", POINTS)
@pytest.mark.parametrize("method", ["ctl", "ppo"])
def test_training(method, count):
    made, steps = [], 4

    def train():
        made.clear()
        target = unit_target()
        # A buffer that is used at every update.
        buffer = ReplayedPositives(target, keep=2, start=64, on_policy_ess=2.0)
        positives = buffer if method == "ctl" else None
        made.append(make_trainer(method, target=target, batch_size=8, positives=positives))
        return list(made[-1].updates(steps, evaluate=lambda twist: twist.method, every=2))

    def learned(trainer):
        return [(u.losses, u.ess, u.log_z, u.evaluation) for u in trainer.history]

    train()
    whole = made[-1]
    for _, place in interrupts(train, count):
        if not made:
            continue
        trainer = made[-1]
        if trainer.done < steps:
            list(
                trainer.updates(steps - trainer.done, evaluate=lambda twist: twist.method, every=2)
            )
        assert torch.equal(parameters(trainer), parameters(whole)), place
        assert learned(trainer) == learned(whole), place


def comparison(folder=None):
    artifacts.forget()
    settings = {"num_runs": 4, "num_exact": 4, "num_samples": 4, "num_particles": 2}
    return tw.compare("rainy-week", ["none", "ctl"], seeds=1, budget=2, folder=folder, **settings)


def rows_of(table):
    return {key: result.rows for key, result in table.results.items()}


@pytest.mark.parametrize("at", range(4))
def test_the_number_of_threads_is_restored_wherever_an_interrupt_comes(monkeypatch, at):
    """As one call of ``one_thread`` to PyTorch ends: Python looks for signals at calls."""
    calls, now = [], [5]

    def interrupted(act):
        def call(*args):
            value = act(*args)
            calls.append(act)
            if len(calls) == at + 1:
                raise KeyboardInterrupt
            return value

        return call

    monkeypatch.setattr(torch, "get_num_threads", interrupted(lambda: now[-1]))
    monkeypatch.setattr(torch, "set_num_threads", interrupted(now.append))
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), one_thread():
            assert now[-1] == 1
        assert now[-1] == 5
    assert len(calls) > at


@pytest.mark.parametrize("count", POINTS)
def test_comparison(tmp_path, count):
    whole, folders = comparison(), []

    def compare():
        folders.append(tmp_path / str(len(folders)))
        return comparison(folders[-1])

    threads = torch.get_num_threads()
    for error, place in interrupts(compare, count):
        done = getattr(error, "comparison", None)
        if done is not None:
            assert rows_of(done.table).items() <= rows_of(whole.table).items(), place
        else:
            assert not list(folders[-1].glob("*.json")), place
        assert rows_of(comparison(folders[-1]).table) == rows_of(whole.table), place
        assert torch.get_num_threads() == threads, place
        assert not list(folders[-1].rglob("*.part")), place
