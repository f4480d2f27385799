"""Which K, twist and resampling: what each costs and gives, the evidence of docs/choosing.md.

    python benchmarks/choices.py [--runs 100]

Prints two tables. Spread is the standard deviation of log Z_hat over runs, in nats; gap is
log Z - E[log Z_hat], with log Z pooled over all runs of the best twist at the largest K. Every
spread of n runs has a relative error of about 1 / sqrt(2 n).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch

import tsmc_widgets as tw
from tsmc_widgets.numerics import logmeanexp

PROBLEM = "one-star-review"
SIZES = (4, 16, 64, 256)
SCHEMES = ("multinomial", "residual", "stratified", "systematic")
RULES: dict[str, dict[str, Any]] = {
    "every step": {"rule": "always"},
    "ESS < K/2": {"ess_threshold": 0.5},
    "ESS < K/4": {"ess_threshold": 0.25},
    "never": {"rule": "never"},
}


def twists(target: tw.Target) -> dict[str, dict[str, Any]]:
    """Ways to sample the target, by name."""
    shipped = tw.load_twist(PROBLEM, target.lm)
    return {
        "none, q = p0": {},
        "look-ahead, q = p0": {"twist": tw.LookAheadTwist(target, seed=0)},
        "shipped, q = p0": {"twist": shipped},
        "shipped, q by the twist": {"twist": shipped, "proposal": tw.TwistInduced()},
    }


def sizes(num_runs: int) -> Iterator[str]:
    """Rows of twists against K: spread, gap and seconds."""
    target = tw.load_problem(PROBLEM).target()
    found = {}
    for name, way in twists(target).items():
        for num_particles in SIZES:
            start = time.perf_counter()
            trace = tw.run_smc(
                target, num_particles=num_particles, num_runs=num_runs, seed=0, **way
            )
            found[name, num_particles] = (trace.log_z, time.perf_counter() - start)
    log_z = float(logmeanexp(torch.as_tensor(found["shipped, q by the twist", SIZES[-1]][0])))
    yield f"| twist | {' | '.join(f'K = {k}' for k in SIZES)} |"
    yield "|---|" + "---|" * len(SIZES)
    for name in twists(target):
        cells = []
        for k in SIZES:
            values, seconds = found[name, k]
            gap = log_z - float(values.mean())
            cells.append(f"{values.std():.3f} · {gap:.3f} · {1000 * seconds / num_runs:.0f}")
        yield f"| {name} | {' | '.join(cells)} |"


def schemes(num_runs: int) -> Iterator[str]:
    """Rows of schemes against rules, on a toy where log Z and the twist are exact."""
    target = tw.load_problem("deceptive-evidence").target()
    twist = tw.exact(target).optimal_twist()
    yield f"| scheme | {' | '.join(RULES)} |"
    yield "|---|" + "---|" * len(RULES)
    for scheme in SCHEMES:
        cells = []
        for rule in RULES.values():
            trace = tw.run_smc(
                target, twist=twist, num_particles=16, num_runs=num_runs, seed=0,
                resampler=scheme, **rule,
            )  # fmt: skip
            cells.append(f"{trace.log_z.std():.3f}")
        yield f"| {scheme} | {' | '.join(cells)} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    num_runs = parser.parse_args().runs
    print(f"{PROBLEM}: spread · gap, nats · milliseconds a run ({torch.get_num_threads()} threads)")
    for row in sizes(num_runs):
        print(row, flush=True)
    print("deceptive-evidence, optimal twist, q = p0, K = 16: spread, nats, of 20,000 runs")
    for row in schemes(20_000):
        print(row, flush=True)


if __name__ == "__main__":
    main()
