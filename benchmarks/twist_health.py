"""What the debugger measures of healthy twists, from which its thresholds follow.

    python benchmarks/twist_health.py [--seeds 3] [--quick]

Optimal twists of toys, optimal ones with noise, twists trained here and shipped ones, each on
several seeds: one row a report, then the worst of each column beside the threshold of ``diagnosis``
that it must not cross. ``docs/debugging.md`` quotes the last lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

import tsmc_widgets as tw
from tsmc_widgets.evaluation.diagnosis import THRESHOLDS, Diagnosis, inconsistency

TOYS = ("rainy-week", "late-evidence", "eos")
SHIPPED = ("one-star-review", "five-star-review", "hostile-story")
UPDATES = 300
BEYOND = {
    "R2": ("min", "flipped"), "R2 siblings": ("min", "uninformative"),
    "best power": ("min", "overconfident"), "best power ": ("max", "underconfident"),
    "Bellman share": ("max", None), "temperature ratio": ("min", "nearer p0"),
    "t value": ("max", "t value"),
}  # fmt: skip
"""Which end of each column is the worst of healthy twists, and the threshold it is held against."""


def healthy(quick: bool) -> Iterator[tuple[str, Any, Any]]:
    """Name, target and twist."""
    for name in TOYS:
        target = tw.load_problem(name).target()
        yield f"optimal, {name}", target, tw.exact(target).optimal_twist()
        for method in ("ctl", "rl"):
            length = len(target.prompt_tokens)
            twist = tw.TableHeadTwist(target.lm, num_steps=target.num_steps, prompt_length=length)
            trainer = tw.TwistTrainer(target, twist, method=method, batch_size=200)
            for _ in trainer.updates(UPDATES):
                pass
            yield f"{method}, {name}", target, twist
    for name in () if quick else SHIPPED:
        target = tw.load_problem(name).target()
        yield f"shipped, {name}", target, tw.load_twist(name, target.lm)


def measured(target: Any, twist: Any, seed: int) -> dict[str, Any]:
    """The statistics that thresholds are held against."""
    report = tw.twist_report(target, twist, seed=seed)
    found = Diagnosis(report, seed=seed)
    ratio, t_value, _ = (found.temperatures or [(1.0, 0.0, 1.0)])[0]
    return {
        "R2": found.all.r2, "R2 siblings": found.within.r2, "best power": found.all.slope,
        "best power ": found.all.slope, "Bellman share": inconsistency(report.bellman),
        "temperature ratio": ratio, "t value": t_value, "defects": ", ".join(report.defects),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="toys only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, target, twist in healthy(given.quick):
        for seed in range(given.seeds):
            rows.append({"twist": name, "seed": seed} | measured(target, twist, seed))
            cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in rows[-1].values())
            print(" | ".join(cells), flush=True)
    frame = pd.DataFrame(rows)
    print("statistic | worst of healthy twists | threshold")
    for column, (end, threshold) in BEYOND.items():
        held = THRESHOLDS[threshold] if threshold else "none"
        print(f"{column.strip()} | {getattr(frame[column], end)():.2f} | {held}")
    print(f"alarms: {(frame['defects'] != '').sum()} of {len(frame)}")


if __name__ == "__main__":
    main()
