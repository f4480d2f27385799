r"""How fast each method learns a twist: updates and seconds until q has come near sigma.

    python benchmarks/learning.py [--updates N] [--seeds N] [--problem NAME ...] [--method NAME ...]

The gap is KL(q || sigma) + KL(sigma || q) of the twist-induced proposal, which is the gap between
the bounds on log Z of one particle, on 300 samples of q and 300 exact samples that the training has
not seen (for infilling: 300 observations). On smollm2, where each takes seconds, fewer do:

    python benchmarks/learning.py --problem happy-review --method rl --batch-size 64 --texts 100 \
        --updates 40 --seeds 3

Seconds are those of the updates, the samples of p0 with which their memory begins included; those
of measuring are not.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import tsmc_widgets as tw
from tsmc_widgets.evaluation import KLEstimate, kl_divergences
from tsmc_widgets.learning import METHODS, ExactPool, TwistTrainer, WeightedPositives
from tsmc_widgets.learning.objectives import link_for
from tsmc_widgets.twists.forms import make_twist

SHARES = (0.5, 0.9, 0.95)
EVERY = 10
# The paper's forms: a transformer of its own for toxicity, heads on a frozen body elsewhere.
FORMS = {
    "hostile-story": ("own body", "MLP head"),
    "one-star-review": ("MLP head", "own body"),
    "infilling-15-10": ("conditional head",),
}


def measure(target: tw.Target, twist: Any, exact: Any) -> KLEstimate:
    """The gap."""
    return kl_divergences(
        target,
        proposal=tw.TwistInduced(twist),
        num_samples=len(exact.tokens),
        exact_samples=exact,
        seed=10**6,
    ).symmetrised


@dataclass(frozen=True, slots=True)
class Race:
    """One training: the gap before and after, and when each share of it was closed.

    Attributes:
        first: gap at the start.
        last: at the end.
        reached: of each of ``SHARES`` (updates, seconds), infinite if never.
        seconds: median of an update.
        tokens: mean of those read in an update.
    """

    first: KLEstimate
    last: KLEstimate
    reached: dict[float, tuple[float, float]]
    seconds: float
    tokens: float


def race(
    target: tw.Target, exact: Any, method: str, form: str, updates: int, seed: int, **sizes: Any
) -> Race:
    """Train once, with the trainer's sizes of a batch."""
    twist = make_twist(form, target, link=link_for(method), seed=seed)
    trainer = TwistTrainer(target, twist, method=method, seed=seed, **sizes)
    first = last = measure(target, twist, exact)
    seconds, reached = 0.0, dict.fromkeys(SHARES, (math.inf, math.inf))
    for update in trainer.updates(updates):
        seconds += update.seconds
        if update.number % EVERY:
            continue
        last = measure(target, twist, exact)
        for share in SHARES:
            if reached[share][0] == math.inf and 1 - last.value / first.value >= share:
                reached[share] = (update.number, seconds)
    # A batch that is its own positives is read once, as is one that needs none.
    alone = WeightedPositives().describe()
    reads = statistics.mean(1 + (u.positives not in (None, alone)) for u in trainer.history)
    return Race(
        first,
        last,
        reached,
        statistics.median(update.seconds for update in trainer.history),
        (1 + reads) * trainer.batch_size * target.num_steps,
    )


def line(races: list[Race]) -> str:
    """Medians over seeds, and the range where there are several."""
    cells = [f"gap {statistics.median(r.first.value for r in races):6.2f} ->"]
    cells.append(
        f"{statistics.median(r.last.value for r in races):5.2f} ± "
        f"{statistics.median(r.last.standard_error for r in races):.2f} "
    )
    for share in SHARES:
        reached = _spread([r.reached[share] for r in races])
        cells.append(f"{share:.0%}: {reached:12s}")
    rate = 1 / statistics.median(r.seconds for r in races)
    tokens = round(statistics.mean(r.tokens for r in races))
    return " ".join([*cells, f"{rate:5.1f} updates/s, {tokens} forward tokens an update"])


def _spread(reached: list[tuple[float, float]]) -> str:
    numbers, seconds = (sorted(column) for column in zip(*reached, strict=True))
    middle, time_ = (statistics.median_high(column) for column in (numbers, seconds))
    if middle == math.inf:
        return "never"
    if len(reached) == 1:
        return f"{middle} ({time_:.0f} s)"
    updates = f"{middle} [{numbers[0]}, {numbers[-1]}]"
    return f"{updates} ({time_:.0f} [{seconds[0]:.0f}, {seconds[-1]:.0f}] s)"


def update_cost(target: tw.Target, exact: Any, form: str, batch_size: int) -> None:
    """Print what an update takes against the sweep that feeds it.

    Of an MLP head by CTL after thirty updates, with a pool of exact samples that has been read and
    with what the trainer chooses; of a tied head by RL after two, with one step on each batch and
    with the usual number.
    """
    cases: dict[str, dict[str, Any]] = {
        "a full pool": {"positives": ExactPool(exact.tokens, exact.log_phi)}, "its own pool": {},
    }  # fmt: skip
    first, repeats = 30, 20
    if form == "tied head":
        cases = {"one step": {"method": "rl", "steps": 1}, "its usual steps": {"method": "rl"}}
        first, repeats = 2, 5
    for name, options in cases.items():
        twist = make_twist(form, target)
        trainer = TwistTrainer(target, twist, batch_size=batch_size, seed=2, **options)
        list(trainer.updates(first))
        updates, sweeps = [], []
        proposal = tw.TwistInduced(twist)
        for seed in range(repeats):
            start = time.perf_counter()
            tw.run_smc(target, num_particles=batch_size, proposal=proposal, rule="never", seed=seed)
            sweeps.append(time.perf_counter() - start)
            updates.append(trainer.update().seconds)
        ratio = statistics.mean(updates) / statistics.mean(sweeps)
        print(
            f"  an update of {batch_size} sequences / the sweep that feeds it: {ratio:.2f} "
            f"with {name}",
            flush=True,
        )


def main() -> None:
    """Run the chosen problems and methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--problem", nargs="*", default=list(FORMS))
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="trainings; their median is printed")
    parser.add_argument("--form", nargs="*", default=None)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--texts", type=int, default=300, help="that measure the gap")
    parser.add_argument("--observations", type=int, default=None, help="in a batch of infilling")
    options = parser.parse_args()
    sizes = {"batch_size": options.batch_size, "observations": options.observations}
    for name in options.problem:
        target, usual = tw.load_problem(name).target(), tw.load_problem(name).form
        exact = target.exact_samples(options.texts, seed=3, progress=False)
        print(f"{name}: {target.describe()}", flush=True)
        if not target.is_conditional:
            update_cost(target, exact, usual, options.batch_size)
        for form in options.form or FORMS.get(name, (usual,)):
            for method in options.method:
                races = [
                    race(target, exact, method, form, options.updates, 1 + seed, **sizes)
                    for seed in range(options.seeds)
                ]
                print(f"  {method:9s} {form:16s} {line(races)}", flush=True)


if __name__ == "__main__":
    main()
