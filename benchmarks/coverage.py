"""How often 95 % intervals hold what they are intervals of: `python dev.py bench coverage`.

Prints the table of docs/coverage.md. The toys have 243 to 15,625 sequences and a log Z that is
known; log Z of the storybook's problems, and E[log Z_hat] of both, come from all runs together.
"""

from __future__ import annotations

import argparse

import torch

import tsmc_widgets as tw
from tsmc_widgets.evaluation import LogZBounds, MeanOverRuns, PooledOverRuns
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.widgets.record import replicate_facts

TOYS = ("rainy-week", "late-evidence", "eos", "rare-event")
STORIES = ("hostile-story", "one-star-review")
SIZES = (5, 8, 20, 100)
BATCH = 100


def run(
    problem: str, method: str, num_particles: int, num_runs: int
) -> tuple[tw.SMCTrace, torch.Tensor]:
    """Runs with a page's defaults, systematic below half of K: the last and all log Z_hat."""
    session = start_spec(
        tw.RunSpec(problem=problem, method=method, num_particles=num_particles, num_runs=1)
    )
    parts = []
    for first in range(0, num_runs, BATCH):
        trace = tw.run_smc(
            session.target,
            num_particles=num_particles,
            num_runs=min(BATCH, num_runs - first),
            first_run=first,
            twist=session.config.twist,
            proposal=session.config.proposal,
            dead_runs="keep",
        )
        parts.append(trace.columns.log_z[:, -1])
    return trace, torch.cat(parts)


def row(name: str, trace: tw.SMCTrace, values: torch.Tensor, log_z: float, n: int) -> str:
    """One line of the table: coverage of the intervals of n runs each."""
    groups = values[: len(values) // n * n].reshape(-1, n)
    mean = float(values.mean())
    held = torch.zeros(4)
    for group in groups:
        shown = replicate_facts(trace, group[:, None])
        ends = (
            ((float(shown["low"]), float(shown["high"])), log_z),
            (PooledOverRuns.of(group).interval(), log_z),
            (MeanOverRuns.of(group).interval(), mean),
            (LogZBounds.of(group, None, num_particles=1).certified(), log_z),
        )
        held += torch.tensor([low <= truth <= high for (low, high), truth in ends])
    shares = " | ".join(f"{100 * share:.0f} %" for share in held / len(groups))
    spread = float(values[torch.isfinite(values)].std())
    return f"| {name} | {spread:.2f} | {n} | {len(groups)} | {shares} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000, help="runs of each toy")
    parser.add_argument("--story-runs", type=int, default=1600, help="runs of each story problem")
    chosen = parser.parse_args()
    print(
        "| runs of | s.d. of log Z_hat | n | intervals | page: log Z | pooled, t: log Z "
        "| mean, t: E[log Z_hat] | certified: log Z |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for problem in TOYS:
        log_z = tw.exact(tw.load_problem(problem).target()).log_z
        for method, size in (("none", 8), ("none", 64)):
            trace, values = run(problem, method, size, chosen.runs)
            for n in SIZES:
                print(row(f"{problem}, p0, K = {size}", trace, values, log_z, n), flush=True)
    for problem in STORIES:
        trace, values = run(problem, "shipped", 64, chosen.story_runs)
        log_z = PooledOverRuns.of(values).value
        for n in SIZES:
            name = f"{problem}, shipped twist, K = 64"
            print(row(name, trace, values, log_z, n), flush=True)


if __name__ == "__main__":
    main()
