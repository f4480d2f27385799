"""How fast each method learns a twist: updates and seconds until the bounds have closed.

    python benchmarks/learning.py [--updates N] [--problem NAME] [--method NAME ...]

The gap is between the means of log Z_hat over forward and conditional runs of one particle with
the twist-induced proposal, on 300 runs and 300 held-out exact samples: KL(q || sigma) +
KL(sigma || q). Evaluation is not counted in the seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass

import torch

import tsmc_widgets as tw
from tsmc_widgets.evaluation import LogZBounds, log_z_bounds
from tsmc_widgets.learning import METHODS, ExactPool, TwistTrainer

RUNS = 300
SHARES = (0.5, 0.9, 0.95)


@dataclass(frozen=True)
class Problem:
    """A target on the model that ships."""

    potential: object
    prompt: str
    num_steps: int


def problems() -> dict[str, Problem]:
    """Twins of the paper's problems."""
    hostile = tw.ClassProbability("storybook/hostility", label=1)
    return {
        "1-star": Problem(tw.ClassProbability("storybook/stars", label=1), "I bought this", 10),
        "hostility": Problem(hostile, "Once upon a time there was a", 20),
        "hostility^10": Problem(hostile**10.0, "Once upon a time there was a", 20),
    }


def measure(target: tw.Target, twist: torch.nn.Module, exact: torch.Tensor) -> LogZBounds:
    """Bounds of one particle: the proposal alone."""
    return log_z_bounds(
        target,
        proposal=tw.TwistInduced(twist),
        num_particles=1,
        num_runs=RUNS,
        exact_samples=exact,
        rule="never",
        seed=10**6,
    )


def race(target: tw.Target, pool: ExactPool, exact: torch.Tensor, method: str, n: int) -> None:
    """Train once and print when the gap had closed by how much."""
    link = "sigmoid" if method == "fudge" else "log"
    twist = tw.MLPHeadTwist(target.lm, link=link)
    trainer = TwistTrainer(target, twist, method=method, positives=pool, seed=1)
    first = measure(target, twist, exact)
    seconds, reached = 0.0, dict.fromkeys(SHARES, "never")
    every = 10
    last = first
    for update in trainer.updates(n):
        seconds += update.seconds
        if update.number % every:
            continue
        last = measure(target, twist, exact)
        for share in SHARES:
            closed = 1 - last.gap / first.gap
            if reached[share] == "never" and closed >= share:
                reached[share] = f"{update.number} ({seconds:.1f} s)"
    cost = statistics.median(update.seconds for update in trainer.history)
    texts = len(pool) and trainer.batch_size
    reads = 2 if trainer.positives is not None else 1
    tokens = trainer.batch_size * target.num_steps + reads * texts * target.num_steps
    print(
        f"  {method:9s} gap {first.gap:6.3f} -> {last.gap:6.3f} ± {last.gap_standard_error:.3f}  "
        + "  ".join(f"{share:.0%}: {reached[share]}" for share in SHARES)
        + f"  {1 / cost:.1f} updates/s, {tokens} forward tokens an update",
        flush=True,
    )


def update_cost(target: tw.Target, pool: ExactPool) -> None:
    """Print an update of an MLP head against the sweep that feeds it."""
    twist = tw.MLPHeadTwist(target.lm)
    trainer = TwistTrainer(target, twist, positives=pool, seed=2)
    updates, sweeps = [], []
    for seed in range(12):
        start = time.perf_counter()
        tw.run_smc(
            target,
            num_particles=100,
            proposal=tw.TwistInduced(twist),
            rule="never",
            seed=seed,
        )
        sweeps.append(time.perf_counter() - start)
        updates.append(trainer.update().seconds)
    ratio = statistics.median(updates) / statistics.median(sweeps)
    print(f"  an update of 100 samples / the sweep that feeds it: {ratio:.2f}")


def main() -> None:
    """Run the chosen problems and methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--problem", nargs="*", default=None)
    parser.add_argument("--method", nargs="*", default=METHODS)
    options = parser.parse_args()
    lm = tw.load_language_model("storybook")
    for name, problem in problems().items():
        if options.problem and name not in options.problem:
            continue
        target = tw.Target(
            lm, problem.potential, prompt=problem.prompt, num_steps=problem.num_steps
        )
        start = time.perf_counter()
        found = target.exact_samples(1000 + RUNS, seed=3, progress=False)
        pool = ExactPool(found.tokens[RUNS:], found.log_phi[RUNS:], seed=3)
        error = found.log_z_standard_error
        print(
            f"{name}: log Z = {found.log_z:.3f} ± {error:.3f} nats by rejection, "
            f"{math.ceil(time.perf_counter() - start)} s for 1,300 exact samples"
        )
        update_cost(target, pool)
        for method in options.method:
            race(target, pool, found.tokens[:RUNS], method, options.updates)


if __name__ == "__main__":
    main()
