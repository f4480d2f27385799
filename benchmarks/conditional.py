"""How fast a twist learns under many observations: infilling on the model that ships.

    python benchmarks/conditional.py [--problem NAME ...] [--form NAME ...] [--method NAME ...]

For each training: updates and processor seconds, by how much KL(sigma(.|o) || q(.|o)) has fallen
and where KL(q || sigma) + KL(sigma || q) stands, in nats, means over 300 held-out o that are paired
before and after, with 95 % intervals. Evaluation is not counted in the seconds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import tsmc_widgets as tw
from tsmc_widgets.evaluation.bounds import ConditionalLogZBounds, log_z_bounds_given
from tsmc_widgets.evaluation.estimates import MeanOverRuns
from tsmc_widgets.learning import METHODS, TwistTrainer
from tsmc_widgets.learning.objectives import link_for
from tsmc_widgets.targets.problems import load_problem
from tsmc_widgets.twists.forms import make_twist

HELD_OUT = 300


def measure(target: tw.Target, twist: Any, joint: Any) -> ConditionalLogZBounds:
    """Bounds of one particle: the proposal alone, under each o."""
    proposal = tw.TwistInduced(twist)
    return log_z_bounds_given(target, joint, num_particles=1, proposal=proposal, rule="never")


def shown(values: torch.Tensor) -> str:
    """A mean and its interval."""
    mean = MeanOverRuns.of(values)
    low, high = mean.interval()
    return f"{mean.mean:.2f} ({low:.2f} to {high:.2f})"


def race(
    name: str, form: str, method: str, seconds: float, reports: int, options: dict[str, Any]
) -> None:
    """Train once, and print where it stands at times."""
    target = load_problem(name).target()
    twist = make_twist(form, target, link=link_for(method))
    joint = target.exact_samples(HELD_OUT, seed=77, progress=False)
    first = measure(target, twist, joint)
    trainer = TwistTrainer(target, twist, method=method, **options)
    print(f"{name}, {form}, {method}: gap {shown(first.upper - first.lower)}", flush=True)
    used = 0.0
    for report in range(1, reports + 1):
        while used < seconds * report / reports:
            start = time.process_time()
            trainer.update()
            used += time.process_time() - start
        last = measure(target, twist, joint)
        print(
            f"  {used:5.0f} s {trainer.done:5d} updates  KL(sigma || q) lower by "
            f"{shown(first.upper - last.upper)}  gap {shown(last.upper - last.lower)}",
            flush=True,
        )


def main() -> None:
    """Run the chosen trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", nargs="*", default=["infilling-15-10", "infilling-2-1"])
    parser.add_argument("--form", nargs="*", default=["conditional head", "conditional body"])
    parser.add_argument("--method", nargs="*", default=["ctl"], choices=METHODS)
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time, for each")
    parser.add_argument("--reports", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--observations", type=int, default=None)
    options = parser.parse_args()
    sizes = {"batch_size": options.batch_size, "observations": options.observations}
    for name in options.problem:
        for form in options.form:
            for method in options.method:
                race(name, form, method, options.seconds, options.reports, sizes)


if __name__ == "__main__":
    main()
