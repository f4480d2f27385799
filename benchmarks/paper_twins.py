"""The paper's comparison of methods, on the twins of its experiments that ship with the package.

    python benchmarks/paper_twins.py --search
    python benchmarks/paper_twins.py [--quick] [--folder FOLDER] [--tables FOLDER] [--workers N]

Five seeds of every method on the twins of toxicity, sentiment and both infilling experiments: KL
divergences both ways (paper, tables 2 to 4), and bounds on log Z against K under a rare threshold
(figure 3). Every method has the same updates, batch size and source of positives, and a constant
learning rate of its own: ``--search`` finds it among ``RATES`` by successive halving on the gap
between the bounds, with another seed than those of the table, and writes every trial to
paper_twins_rates.json. A method that was not searched on a problem takes the form's usual rate.
Runs are kept in FOLDER: call it again after an interrupt, and only what is missing is computed.
Tables go to another folder, as CSV and Markdown; the third notebook shows them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from scipy import stats

import tsmc_widgets as tw
from training.search import search_settings
from tsmc_widgets.experiments.compare import OverSeeds
from tsmc_widgets.files import write_atomically
from tsmc_widgets.learning import ConstantRate

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "notebooks" / "tables"
METHODS = ("none", "ctl", "rl", "sixo", "fudge", "dpg", "ppo", "nvi", "cd")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEARCH_SEED = 1000
KLS = ("KL(q||σ)", "KL(σ||q)")

# Means over five seeds as the paper gives them: KL(q || sigma), KL(sigma || q).
PUBLISHED = {
    "hostile-story": {
        "ctl": (1.11, 1.07), "rl": (1.52, 1.42), "sixo": (1.71, 1.98),
        "fudge": (3.24, 2.00), "dpg": (1.09, 1.12), "ppo": (0.98, 1.32),
    },
    "one-star-review": {
        "ctl": (0.55, 0.47), "rl": (0.94, 0.81), "sixo": (0.73, 0.59),
        "fudge": (1.01, 0.77), "dpg": (0.72, 0.57), "ppo": (1.04, 0.87),
    },
    "infilling-15-10": {
        "ctl": (23.93, 8.87), "rl": (31.35, 14.96), "sixo": (20.34, 7.43),
        "fudge": (60.93, 19.85), "dpg": (13.27, 4.90), "ppo": (19.37, 14.07),
    },
    "infilling-2-1": {
        "ctl": (0.47, 0.25), "rl": (0.42, 0.15), "sixo": (0.47, 0.25),
        "fudge": (2.62, 0.90), "dpg": (0.16, 0.14), "ppo": (0.52, 1.09),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One problem with what every method may spend on it, and what is measured."""

    problem: str
    methods: tuple[str, ...]
    budget: tw.Training
    settings: dict

    def comparison(self, seeds: int, searched: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """What is to be run, each method with the rate that was found for it on this problem."""
        found = searched.get(self.problem, {})
        return tw.Comparison(
            self.problem,
            self.methods,
            seeds=seeds,
            budget=self.budget,
            learning_rates={method: each["rate"] for method, each in found.items()},
            **self.settings,
        )


def parts(*, quick: bool) -> dict[str, Part]:
    """The experiments, at full size or small enough to see that all of it works."""
    kl = {"measures": ("bounds", "kl"), "num_particles": (1,), "num_runs": 300, "num_exact": 120,
          "num_samples": 500, "rule": ("never",)}  # fmt: skip
    given = {"measures": ("kl",), "num_particles": (32,), "num_exact": 80}
    bounds = {"measures": ("bounds",), "num_particles": (1, 4, 16, 64, 256), "num_runs": 20,
              "num_exact": 30, "rule": ("never", "ess"), "max_draws": 60_000}  # fmt: skip
    rare = tw.Training(num_updates=100)
    # Batches would drop whole kinds of sequences under an indicator this rare.
    threshold = tw.Training(num_updates=150, pool=100, max_draws=100_000)
    found = {
        "toxicity": Part("hostile-story", METHODS, rare, kl),
        "sentiment": Part("one-star-review", METHODS, tw.Training(num_updates=120), kl),
        "infilling 15/10": Part("infilling-15-10", METHODS, tw.Training(num_updates=80), given),
        "infilling 2/1": Part("infilling-2-1", METHODS, tw.Training(num_updates=200), given),
        "threshold": Part("hostile-story-threshold", ("none", "ctl"), threshold, bounds),
    }
    return {name: _small(part) for name, part in found.items()} if quick else found


def _small(part: Part) -> Part:
    settings = {
        **part.settings, "num_exact": 8, "num_runs": 8, "num_samples": 20, "max_draws": 20_000,
        "num_particles": part.settings["num_particles"][:2],
    }  # fmt: skip
    if part.settings["num_particles"] == (32,):
        settings["num_particles"] = (4,)
    budget = replace(part.budget, num_updates=2, pool=10, max_draws=10_000)
    return Part(part.problem, part.methods, budget, settings)


def read_rates(folder: Path) -> dict[str, dict[str, Any]]:
    """What was searched so far, by problem and method."""
    path = folder / "paper_twins_rates.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def search(chosen: dict[str, Part], folder: Path, sequences: int) -> None:
    """Search the rate of every method on every problem that has none yet; each is kept at once."""
    for method in METHODS[1:]:
        for part in chosen.values():
            searched = read_rates(folder)
            # A part that ranks no methods keeps the usual rate.
            ranked = part.methods == METHODS
            if not ranked or method in searched.get(part.problem, {}):
                continue
            problem = tw.load_problem(part.problem)
            found = search_settings(
                problem.target(),
                method=method,
                form=problem.form,
                learning_rates=[ConstantRate(rate) for rate in RATES],
                first_sequences=sequences,
                num_held_out=100,
                seed=SEARCH_SEED,
            )
            trials = [
                {"rate": t.learning_rate.rate, "round": t.round, "updates": t.updates,
                 "sequences": t.updates * t.batch_size, "gap": t.gap, "interval": t.interval}
                for t in found.trials
            ]  # fmt: skip
            own = {"rate": found.best.learning_rate.rate, "untrained": found.start.mean}
            searched.setdefault(part.problem, {})[method] = own | {"trials": trials}
            folder.mkdir(parents=True, exist_ok=True)
            with write_atomically(folder / "paper_twins_rates.json") as whole:
                whole.write_text(json.dumps(searched, indent=1) + "\n")
            print(f"{part.problem} {method}\n{found}", flush=True)


def run(comparisons: dict[str, tw.Comparison], folder: Path, workers: int) -> None:
    """Compute what is missing, seed by seed; tables fill in place."""
    specs = sorted(
        (spec for comparison in comparisons.values() for spec in comparison.specs),
        key=lambda spec: spec.seed,
    )
    owners = {spec.key: one for one in comparisons.values() for spec in one.specs}
    start, computed = time.perf_counter(), 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        stream = tw.map_runs(specs, executor, folder)
        try:
            for result in stream:
                owners[result.spec.key].table.add(result)
                if result.stored:
                    continue
                computed += 1
                left = (time.perf_counter() - start) / computed * (stream.total - stream.done)
                state = "failed" if result.error else f"{result.seconds:.0f} s"
                spec = result.spec
                print(
                    f"{stream.done}/{stream.total} {spec.problem_name} {spec.method} seed "
                    f"{spec.seed}: {state}; about {left / 60:.0f} min left",
                    flush=True,
                )
        except BaseException:
            stream.cancel()
            raise


def agreement(entries: Iterable[OverSeeds], published: dict[str, float]) -> dict[str, list[str]]:
    """Pairs of methods by whether our intervals separate them, and whether in the paper's order."""
    ours = {entry.method: entry for entry in entries if entry.method in published}
    pairs: dict[str, list[str]] = {"same": [], "opposite": [], "undecided": []}
    for a, b in itertools.combinations(ours, 2):
        first, second = sorted((a, b), key=lambda name: ours[name].mean)
        name = f"{first.upper()} < {second.upper()}"
        apart = ours[first].interval[1] < ours[second].interval[0]
        if not apart or published[first] == published[second]:
            pairs["undecided"].append(name)
        else:
            pairs["same" if published[first] < published[second] else "opposite"].append(name)
    return pairs


def rank_correlation(entries: Iterable[OverSeeds], published: dict[str, float]) -> float:
    """Kendall's tau between our means and the paper's, over the methods that both have."""
    ours = {entry.method: entry.mean for entry in entries if entry.method in published}
    both = [published[name] for name in ours]
    return float(stats.kendalltau(list(ours.values()), both).statistic)


def ranking(comparisons: dict[str, tw.Comparison]) -> str:
    """Where our order of methods is the paper's and where it is not, as Markdown."""
    lines = ["## Against the paper's order", ""]
    for name, comparison in comparisons.items():
        problem = comparison.specs[0].problem_name
        for at, quantity in enumerate(KLS):
            entries = comparison.entries(quantity)
            known = {m: values[at] for m, values in PUBLISHED.get(problem, {}).items()}
            if not known or len({e.method for e in entries} & set(known)) < 2:
                continue
            pairs = agreement(entries, known)
            tau = rank_correlation(entries, known)
            counts = ", ".join(f"{len(found)} {kind}" for kind, found in pairs.items())
            lines.append(f"- {name}, {quantity}: Kendall's τ = {tau:.2f}; pairs: {counts}.")
            if pairs["opposite"]:
                lines.append(f"  Opposite to the paper: {', '.join(pairs['opposite'])}.")
    lines += [
        "",
        "A pair counts as the same or opposite where our 95 % intervals over seeds separate it.",
        "The paper's values are of larger models and longer trainings.",
    ]
    return "\n".join(lines) + "\n"


def rates_used(comparison: tw.Comparison) -> str:
    """The rate of each method, in words."""
    rates = {s.method: s.training.learning_rate for s in comparison.specs if s.learns}
    return ", ".join(
        f"{name} {rate:g}" if rate else f"{name} the form's" for name, rate in rates.items()
    )


def write_tables(comparisons: dict[str, tw.Comparison], folder: Path, seeds: int) -> str:
    """Write CSV for the notebook and Markdown for people; the latter is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    text = [f"# The paper's comparison on its twins, {seeds} seeds", ""]
    for name, comparison in comparisons.items():
        frame = comparison.to_frame()
        if not frame.empty:
            frame.insert(0, "experiment", name)
            frames.append(frame)
        plan = next(spec.training for spec in comparison.specs if spec.learns)
        state = repr(comparison)[1:-1].replace("Comparison", "Runs", 1)
        wanted = [q for q in (*KLS, "gap") if q in comparison.quantities]
        text += [
            f"## {name}: {comparison.specs[0].problem_name}",
            f"{plan.num_updates} updates of {plan.batch_size} texts. {state}.",
            f"Learning rates: {rates_used(comparison)}.",
            "",
        ]
        for quantity in wanted:
            text += [comparison.grid(quantity).title, "", comparison.to_markdown(quantity)]
    whole = "\n".join(text) + "\n" + ranking(comparisons)
    if frames:
        table = pd.concat(frames, ignore_index=True)
        table.to_csv(folder / "paper_twins.csv", index=False)
    (folder / "paper_twins.md").write_text(whole, encoding="utf-8")
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, two updates: a trial")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "paper_twins")
    parser.add_argument("--tables", type=Path, default=TABLES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=None, help=", ".join(parts(quick=True)))
    parser.add_argument("--search", action="store_true", help="find rates, and run nothing else")
    parser.add_argument("--sequences", type=int, default=2000, help="of the search's first round")
    options = parser.parse_args(arguments)
    seeds = options.seeds or (2 if options.quick else 5)
    chosen = parts(quick=options.quick)
    if options.only:
        unknown = sorted(set(options.only) - set(chosen))
        if unknown:
            parser.error(f"no experiment {unknown[0]!r}; there are {', '.join(chosen)}.")
        chosen = {name: part for name, part in chosen.items() if name in options.only}
    if options.search:
        search(chosen, options.tables, options.sequences)
        return
    searched = read_rates(options.tables) or read_rates(TABLES)
    comparisons = {name: part.comparison(seeds, searched) for name, part in chosen.items()}
    start = time.perf_counter()
    try:
        run(comparisons, options.folder, options.workers)
    finally:
        print(write_tables(comparisons, options.tables, seeds))
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes with {options.workers} workers")
    for comparison in comparisons.values():
        for result in comparison.table.failures.values():
            spec = result.spec
            print(f"failed: {spec.problem_name} {spec.method} seed {spec.seed}: "
                  f"{result.error['message']}")  # fmt: skip


if __name__ == "__main__":
    main()
