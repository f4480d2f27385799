"""One process of a training that several share, saved and resumed halfway; for test_processes.py.

    python shared_training.py KIND FOLDER

The rank, the number of processes and where they meet stand in the environment.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from learning.cases import make_case
from learning.trainers import parameters


def main() -> None:
    """Train, and write what came of it."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    accelerator = Accelerator(cpu=True)
    trainer = make_case(kind, accelerator=accelerator)
    start = parameters(trainer)
    measured = {"evaluate": lambda twist: {"at": 1}, "every": 2, "progress": False}
    updates = list(trainer.updates(2, **measured))
    trainer.save(folder / "training")
    trainer = make_case(kind, accelerator=accelerator)
    trainer.load(folder / "training")
    updates += trainer.updates(2, **measured)
    rank = accelerator.process_index
    torch.save(parameters(trainer), folder / f"parameters{rank}.pt")
    (folder / f"history{rank}.json").write_text(
        json.dumps(
            [
                [u.losses, u.hits, u.skipped, u.gradient_norm, u.evaluation, float(start.sum())]
                for u in updates
            ]
        )
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
    # gloo's threads now and then abort a process while its interpreter is taken down.
    os._exit(0)
