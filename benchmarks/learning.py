"""How fast each method learns a twist: updates and seconds until q has come near sigma.

    python benchmarks/learning.py [--updates N] [--problem NAME ...] [--method NAME ...] [--form F]

The gap is KL(q || sigma) + KL(sigma || q) of the twist-induced proposal, which is the gap between
the bounds on log Z of one particle, on 300 texts of q and 300 exact samples that the training has
not seen (for infilling: 300 observations). Seconds are those of the updates, the texts of p0 with
which their memory begins included; those of measuring are not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import tsmc_widgets as tw
from tsmc_widgets.evaluation import KLEstimate, kl_divergences
from tsmc_widgets.learning import METHODS, ExactPool, TwistTrainer, WeightedPositives
from tsmc_widgets.learning.recipes import link_for
from tsmc_widgets.twists.forms import make_twist

TEXTS = 300
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
        num_samples=TEXTS,
        exact_samples=exact,
        seed=10**6,
    ).symmetrised


def race(target: tw.Target, exact: Any, method: str, form: str, updates: int) -> None:
    """Train once and print when the gap had closed by how much."""
    twist = make_twist(form, target, link=link_for(method), seed=1)
    trainer = TwistTrainer(target, twist, method=method, seed=1)
    first = last = measure(target, twist, exact)
    seconds, reached = 0.0, dict.fromkeys(SHARES, "never")
    for update in trainer.updates(updates):
        seconds += update.seconds
        if update.number % EVERY:
            continue
        last = measure(target, twist, exact)
        for share in SHARES:
            if reached[share] == "never" and 1 - last.value / first.value >= share:
                reached[share] = f"{update.number} ({seconds:.0f} s)"
    cost = statistics.median(update.seconds for update in trainer.history)
    # A batch that is its own positives is read once, as is one that needs none.
    alone = WeightedPositives().describe()
    reads = statistics.mean(1 + (u.positives not in (None, alone)) for u in trainer.history)
    tokens = round((1 + reads) * trainer.batch_size * target.num_steps)
    print(
        f"  {method:9s} {form:16s} gap {first.value:6.2f} -> {last.value:5.2f} ± "
        f"{last.standard_error:.2f}  "
        + "  ".join(f"{share:.0%}: {reached[share]:12s}" for share in SHARES)
        + f" {1 / cost:5.1f} updates/s, {tokens} forward tokens an update",
        flush=True,
    )


def update_cost(target: tw.Target, exact: Any) -> None:
    """Print an update of an MLP head by 100 texts against the sweep that feeds it.

    Once with a pool of exact samples that has been read, and once with what the trainer chooses,
    each after thirty updates.
    """
    for name, pool in (("a full pool", ExactPool(exact.tokens, exact.log_phi)), ("its own", None)):
        twist = make_twist("MLP head", target)
        trainer = TwistTrainer(target, twist, positives=pool, seed=2)
        list(trainer.updates(30))
        updates, sweeps = [], []
        for seed in range(20):
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
        ratio = statistics.mean(updates) / statistics.mean(sweeps)
        print(
            f"  an update of 100 texts / the sweep that feeds it: {ratio:.2f} with {name} "
            f"({trainer.positives.describe()})",
            flush=True,
        )


def main() -> None:
    """Run the chosen problems and methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--problem", nargs="*", default=list(FORMS))
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--form", nargs="*", default=None)
    options = parser.parse_args()
    for name in options.problem:
        target = tw.load_problem(name).target()
        exact = target.exact_samples(TEXTS, seed=3, progress=False)
        print(f"{name}: {target.describe()}", flush=True)
        if not target.is_conditional:
            update_cost(target, exact)
        for form in options.form or FORMS.get(name, (tw.load_problem(name).form,)):
            for method in options.method:
                race(target, exact, method, form, options.updates)


if __name__ == "__main__":
    main()
