"""Texts of a schema: masked decoding beside SMC, each against sigma.

    python benchmarks/constraints.py [--model FOLDER] [--problem product-json] [--runs 16]

Masked decoding draws from p0 times the mask, renormalised, and weighs nothing. Prints its share of
complete texts; log Z, the mass of valid texts, pooled over all runs of the largest K, with a 95 %
interval; and how far what is drawn is from sigma, in nats. For masked decoding that is KL(q ||
sigma) with q restricted to complete texts (it is infinite without), for SMC log Z - E[log Z_hat],
an upper bound on the KL of one particle drawn by its weight. Last, the mask's share of the time.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch

import tsmc_widgets as tw
from tsmc_widgets.evaluation.estimates import MeanOverRuns, PooledOverRuns

SIZES = (16, 64)


def run(target: tw.Target, num_particles: int, run: int, **how: Any) -> tw.SMCTrace:
    """One run, masked."""
    return tw.run_smc(
        target, num_particles=num_particles, first_run=run, twist=tw.LookAheadTwist(target),
        proposal=tw.TwistInduced(), dead_runs="keep", **how,
    )  # fmt: skip


def masked_decoding(target: tw.Target, runs: int, first: int) -> torch.Tensor:
    """Log p0 phi - log q of sequences that are drawn by masks alone, -inf where incomplete."""
    traces = [run(target, SIZES[-1], first + at, rule="never") for at in range(runs)]
    return torch.cat([trace.log_weights for trace in traces])


class Timed:
    """A method that remembers the seconds spent in it."""

    def __init__(self, method: Any) -> None:
        self.method, self.seconds = method, 0.0

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        start = time.perf_counter()
        try:
            return self.method(*args)
        finally:
            self.seconds += time.perf_counter() - start


def mask_share(target: tw.Target, num_particles: int) -> tuple[float, float]:
    """Seconds of one run, and the masks' share of them."""
    masks = target.potential.viable_next = Timed(target.potential.viable_next)
    start = time.perf_counter()
    run(target, num_particles, 0)
    whole = time.perf_counter() - start
    return whole, masks.seconds / whole


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="product-json")
    parser.add_argument("--model", default=None, help="a folder in place of the problem's model")
    parser.add_argument("--runs", type=int, default=16)
    options = parser.parse_args()
    target = tw.load_problem(options.problem).target(options.model)
    print(target)
    log_z = {
        k: torch.tensor([run(target, k, at).log_z for at in range(options.runs)]) for k in SIZES
    }
    pooled = PooledOverRuns.of(log_z[SIZES[-1]])
    low, high = pooled.interval()
    print(f"log Z = {pooled.value:.2f} ({low:.2f} to {high:.2f}): the mass of valid texts")
    log_w = masked_decoding(target, max(2, options.runs // 4), options.runs)
    complete = log_w[log_w > -math.inf]
    share = len(complete) / len(log_w)
    print(
        f"masked decoding: {share:.1%} of {len(log_w)} texts are complete, and all of these valid"
    )
    gap = MeanOverRuns.of(pooled.value - complete - math.log(share))
    print(f"  KL(q || sigma), complete texts: {gap.mean:.2f} +- {gap.standard_error:.2f}")
    for k, values in log_z.items():
        gap = MeanOverRuns.of(pooled.value - values)
        print(f"SMC, K = {k:3}: KL to sigma at most {gap.mean:.2f} +- {gap.standard_error:.2f}")
    seconds, of_masks = mask_share(target, SIZES[-1])
    print(f"one run of K = {SIZES[-1]}: {seconds:.1f} s, of which masks {of_masks:.1%}")


if __name__ == "__main__":
    main()
