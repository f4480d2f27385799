"""Training on several processes: byte-equal alone, and together what one does with all texts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learning.cases import make_case
from learning.trainers import parameters

from tsmc_widgets import numerics
from tsmc_widgets.errors import CheckpointError, NoSignalError
from tsmc_widgets.learning.objectives import RECIPES
from tsmc_widgets.learning.processes import Processes
from tsmc_widgets.learning.samples import score

accelerate = pytest.importorskip("accelerate")
HERE = Path(__file__).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def accelerator():
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", ["ctl", "replayed", "ppo", "conditional", "rare"])
def test_one_process_is_byte_equal_to_none(kind, accelerator, tmp_path):
    alone, shared = make_case(kind), make_case(kind, accelerator=accelerator)
    list(alone.updates(2))
    list(shared.updates(2))
    path = shared.save(tmp_path / "training")
    resumed = make_case(kind, accelerator=accelerator)
    resumed.load(path)
    for trainer in (alone, resumed):
        list(trainer.updates(2))
    assert torch.equal(parameters(resumed), parameters(alone))
    assert [u.losses for u in resumed.history] == [u.losses for u in alone.history]


def together(kind, folder):
    """Two processes of one machine; what each of them came to."""
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    path = os.pathsep.join(
        [str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "shared_training.py"), kind, str(folder)],
            env={
                **os.environ,
                **places,
                "PYTHONPATH": path,
                "ACCELERATE_USE_CPU": "true",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said[0] + said[1]
    found = [torch.load(folder / f"parameters{rank}.pt") for rank in range(2)]
    histories = [json.loads((folder / f"history{rank}.json").read_text()) for rank in range(2)]
    assert torch.equal(*found)
    assert histories[0] == histories[1]
    assert [row[4] for row in histories[0]] == [None, {"at": 1}, None, {"at": 1}]
    return found[0], histories[0]


def both_halves(kind):
    """One process that takes what two would have drawn, each half with weights of its own."""
    trainer = make_case(kind)
    # Each process remembers its own batches.
    sources = [make_case(kind).positives, make_case(kind).positives]
    silent = []
    for update in range(4):
        with trainer._average.set_aside(update):
            silent += [(update, rank) for rank in both_descend(trainer, sources)]
        trainer.history.append(None)
    return parameters(trainer), silent


def both_descend(trainer, sources):
    """Take one step on both halves of an update; gives those without a signal."""
    trainer._optimiser.zero_grad()
    recipe, drawn, halves, silent = RECIPES[trainer.twist.method], [], [], []
    for rank in range(2):
        trainer._share.rank, trainer._share.count = rank, 2
        trainer._batches.positives, trainer._batches.stride = sources[rank], 2
        drawn.append(trainer._batches.draw(trainer._address))
    if recipe.reads_phi and not trainer.history:
        levels = [numerics.logmeanexp(batch.log_weights) for batch, _ in drawn]
        trainer.twist.start_at(float(sum(levels)) / 2)
    for rank, (batch, positives) in enumerate(drawn):
        at_batch = score(trainer.target, trainer.twist, batch)
        at_sigma = at_batch
        if positives is not None and positives is not batch:
            at_sigma = score(trainer.target, trainer.twist, positives)
        try:
            halves.append(recipe.loss(at_sigma, at_batch))
        except NoSignalError:
            silent.append(rank)
    if halves:
        torch.stack(halves).mean().backward()
        torch.nn.utils.clip_grad_norm_(trainer.twist.parameters(), 10.0)
        trainer._optimiser.step()
    return silent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ctl", "replayed", "rl", "rare"])
def test_two_processes_are_one_with_both_halves(kind, tmp_path):
    found, history = together(kind, tmp_path)
    expected, silent = both_halves(kind)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    if kind == "rare":
        assert any((update, 1 - rank) not in silent for update, rank in silent)
        assert [row[2] for row in history] == [
            (update, 0) in silent and (update, 1) in silent for update in range(4)
        ]
    else:
        assert not silent
    with pytest.raises(CheckpointError, match="processes=2 and this trainer has processes=1"):
        make_case(kind).load(tmp_path / "training")


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_observations(tmp_path):
    found, history = together("conditional", tmp_path)
    whole = make_case("conditional", processes=2)
    updates = list(whole.updates(4))
    torch.testing.assert_close(found, parameters(whole), rtol=0, atol=1e-12)
    for row, update in zip(history, updates, strict=True):
        assert row[0]["ctl"] == pytest.approx(update.losses["ctl"], abs=1e-12)
        assert row[3] == pytest.approx(update.gradient_norm, abs=1e-12)


class TestRefused:
    def test_no_accelerator(self):
        with pytest.raises(TypeError, match=r"must be an accelerate.Accelerator; got str"):
            make_case("ctl", accelerator="cuda")

    def test_another_device(self, accelerator):
        with pytest.raises(ValueError, match=r"load it with device=accelerator\.device"):
            Processes(accelerator).place(torch.nn.Linear(1, 1), torch.device("cuda", 1))

    def test_few_digits(self, accelerator, monkeypatch):
        monkeypatch.setattr(type(accelerator), "mixed_precision", property(lambda self: "bf16"))
        with pytest.raises(ValueError, match=r"mixed_precision must be 'no'.*got 'bf16'"):
            make_case("ctl", accelerator=accelerator)
