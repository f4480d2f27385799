"""Find the learning rate and batch size that train a twist, for a problem, method and form.

    python -m benchmarks.search infilling-2-1 --method ctl --form "conditional head"
    python -m benchmarks.search one-star --rates 0.0003 0.001 0.003 --batches 50 100 200

Settings race by successive halving: all draw as many texts in a round, the half with the smaller
gap between the bounds on log Z is kept, and the next round is twice as long. The gap is
KL(q || sigma) + KL(sigma || q) of the twist-induced proposal on held-out exact samples, in nats.
Rates fall with the root of the number of updates (``FallingRate``) unless --constant is given.
What is printed last is the call to use.
"""

from __future__ import annotations

import argparse

from training.search import search_settings
from tsmc_widgets.learning import METHODS, ConstantRate, FallingRate
from tsmc_widgets.targets.problems import PROBLEMS, load_problem
from tsmc_widgets.twists.forms import TWIST_FORMS


def main() -> None:
    """Search, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("problem", choices=sorted(PROBLEMS), metavar="PROBLEM")
    parser.add_argument("--method", default="ctl", choices=METHODS)
    parser.add_argument("--form", default=None, choices=sorted(TWIST_FORMS))
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--batches", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--sequences", type=int, default=2000, help="in the first round")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problem = load_problem(options.problem)
    kind = ConstantRate if options.constant else FallingRate
    result = search_settings(
        problem.target(),
        method=options.method,
        form=problem.form if options.form is None else options.form,
        learning_rates=[kind(rate) for rate in options.rates],
        batch_sizes=options.batches,
        first_sequences=options.sequences,
        num_held_out=options.held_out,
        seed=options.seed,
        on_round=lambda number, left: print(f"round {number}: {left} settings", flush=True),
    )
    print(result)


if __name__ == "__main__":
    main()
