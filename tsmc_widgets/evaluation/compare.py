"""Methods against each other on named problems: equal budgets, several seeds, honest intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.evaluation.export import Grid, no_formula, page
from tsmc_widgets.evaluation.result_table import ResultTable
from tsmc_widgets.evaluation.runs import RunResult, map_runs
from tsmc_widgets.evaluation.spec import METHODS, TEXT_METHODS, RunSpec, Training
from tsmc_widgets.evaluation.summary import OverSeeds, over_seeds, split_quantity
from tsmc_widgets.learning.recipes import METHODS as LEARNING_METHODS

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "KL(q||σ)": "KL(q||σ), nats",
    "KL(σ||q)": "KL(σ||q), nats",
    "gap": "gap between the bounds on log Z, nats",
    "lower": "lower bound on log Z, nats",
    "upper": "upper bound on log Z, nats",
    "lower, pooled": "lower bound on log Z, runs pooled, nats",
    "upper, pooled": "upper bound on log Z, samples pooled, nats",
}


class Comparison:
    """Problems by methods by seeds: what is to be run, and what has come of it so far.

    Args:
        problems: names in ``PROBLEMS``, or descriptions as for ``RunSpec``.
        methods: as for ``RunSpec``: "none", "optimal", learning methods.
        seeds: how many, or which; each seeds a training and the runs that measure it.
        num_particles: one or more K for the bounds.
        budget: what every learning method may spend: updates, or a ``Training`` of which all but
            the seed counts. The same texts for each update, the same pool of exact samples.
        **settings: further fields of each ``RunSpec``, such as num_runs, num_exact or measures.

    Attributes:
        specs: one for each problem, method and seed.
        table: results so far, as a ``ResultTable``.
    """

    def __init__(
        self,
        problems: Any,
        methods: str | Iterable[str],
        *,
        seeds: int | Iterable[int] = 5,
        num_particles: int | Sequence[int] = (1, 4, 16),
        budget: int | Training = 200,
        **settings: Any,
    ) -> None:
        self.methods = _several(methods)
        for method in self.methods:
            check_one_of("method", method, [m for m in METHODS if m != "saved"])
        if isinstance(seeds, int):
            check_integer("seeds", seeds)
            seeds = range(seeds)
        self.seeds = tuple(dict.fromkeys(seeds))
        if not isinstance(budget, Training):
            budget = Training(num_updates=budget)
        settings = {"measures": ("bounds", "kl"), "num_particles": num_particles, **settings}
        if set(self.methods) & set(TEXT_METHODS) and "texts" not in settings["measures"]:
            settings["measures"] = (*_several(settings["measures"]), "texts")
        of_texts = settings | {"measures": ("texts",)}
        self.specs = [
            RunSpec(
                problem=problem,
                method=method,
                training=replace(budget, seed=seed) if method in LEARNING_METHODS else None,
                seed=seed,
                **(of_texts if method in TEXT_METHODS else settings),
            )
            for seed in self.seeds
            for method in self.methods
            for problem in _several(problems)
        ]
        self.table = ResultTable()

    @classmethod
    def of(cls, specs: Iterable[RunSpec]) -> Comparison:
        """A comparison of these specs, such as methods that differ from problem to problem."""
        self = cls.__new__(cls)
        self.specs = list(specs)
        self.methods = list(dict.fromkeys(spec.method for spec in self.specs))
        self.seeds = tuple(dict.fromkeys(spec.seed for spec in self.specs))
        self.table = ResultTable()
        return self

    def run(
        self, executor: Executor | None = None, folder: str | Path | None = None
    ) -> Iterator[RunResult]:
        """Results as they finish; each is in the table when it is given out.

        Leaving the loop starts nothing more.
        """
        stream = map_runs(self.specs, executor, folder)
        try:
            for result in stream:
                self.table.add(result)
                yield result
        finally:
            stream.cancel()

    @property
    def done(self) -> int:
        """Specs with a result or an error."""
        return len(self.table) + len(self.table.failures)

    @property
    def total(self) -> int:
        """Specs in all."""
        return len({spec.key for spec in self.specs})

    def entries(self, quantity: str | None = None) -> list[OverSeeds]:
        """Every number over seeds, in the order of the specs; of one quantity if it is named."""
        ordered = [self.table.results[s.key] for s in self.specs if s.key in self.table.results]
        found = over_seeds(ordered, self.seeds)
        order = {spec.problem_name: at for at, spec in enumerate(reversed(self.specs))}
        found.sort(key=lambda e: (-order[e.place.problem], e.place.num_particles, e.rule))
        return [entry for entry in found if quantity in (None, entry.place.quantity)]

    @property
    def quantities(self) -> list[str]:
        """What there are tables of."""
        return list(dict.fromkeys(entry.place.quantity for entry in self.entries()))

    def to_frame(self) -> pd.DataFrame:
        """One row for each problem, method and number: its mean over seeds and 95 % t-interval.

        Columns as in ``ResultTable.to_frame``, so that the same figures read both; ``value`` is the
        mean over seeds and ``num_seeds`` the n of Student's t (n = 5 takes 2.776). ``best`` is true
        where the interval lies beyond those of all other methods; the optimal twist does not
        compete. ``exact`` is log Z where it is known.
        """
        import pandas as pd

        exact = {
            result.spec.problem_name: row["exact"]
            for result in self.table.results.values()
            for row in result.rows
            if row["exact"] is not None
        }
        records = []
        for entry in self.entries():
            low, high = entry.interval
            place = entry.place
            quantity, side = split_quantity(place.quantity)
            records.append(
                {
                    "problem": place.problem,
                    "method": entry.method,
                    "quantity": quantity,
                    "side": side,
                    "rule": entry.rule,
                    "num_particles": place.num_particles,
                    "value": entry.mean,
                    "low": low,
                    "high": high,
                    "num_seeds": len(entry.values),
                    "exact": exact.get(place.problem) if side else None,
                    "best": entry.best,
                }
            )
        return pd.DataFrame(records)

    def grid(self, quantity: str) -> Grid:
        """One quantity as a table of texts, methods by problems.

        Raises:
            ValueError: nothing of that name was measured, or not yet by all seeds.
        """
        check_one_of("quantity", quantity, self.quantities)
        title = f"{TITLES.get(quantity, quantity)}: mean over {len(self.seeds)} seeds"
        title += " ± half of its 95 % t-interval; bold where apart from all others"
        return Grid.of(self.entries(quantity), self.methods, title=title)

    def to_csv(self, quantity: str, path: str | Path | None = None) -> str:
        """The table of a quantity, written to a file if one is named."""
        return _written(self.grid(quantity).to_csv(), path)

    def to_latex(self, quantity: str, path: str | Path | None = None) -> str:
        """The table of a quantity with the rules of booktabs, for a paper."""
        return _written(self.grid(quantity).to_latex(), path)

    def to_html(self, quantity: str, path: str | Path | None = None) -> str:
        """The table of a quantity; texts are escaped."""
        return _written(self.grid(quantity).to_html(), path)

    def to_markdown(self, quantity: str, path: str | Path | None = None) -> str:
        """The table of a quantity, for a README."""
        return _written(self.grid(quantity).to_markdown(), path)

    def export(self, kind: str, path: str | Path) -> None:
        """Write every quantity: its numbers as "csv", or a table of each as "tex" or "html"."""
        check_one_of("kind", kind, ("csv", "tex", "html"))
        if kind == "csv":
            frame = self.to_frame()
            for column in frame.select_dtypes(exclude="number"):
                frame[column] = [no_formula(v) if isinstance(v, str) else v for v in frame[column]]
            text = frame.to_csv(index=False)
        elif kind == "tex":
            text = "\n".join(self.to_latex(quantity) for quantity in self.quantities)
        else:
            text = page(self.to_html(quantity) for quantity in self.quantities)
        _written(text, path)

    def __repr__(self) -> str:
        failed = f", {len(self.table.failures)} failed" if self.table.failures else ""
        return f"<Comparison: {self.done} of {self.total} done{failed}>"

    def _repr_html_(self) -> str:
        shown = [q for q in ("KL(q||σ)", "KL(σ||q)", "gap") if q in self.quantities]
        parts = [f"<p>{escape(repr(self)[1:-1])}</p>", *(self.to_html(q) for q in shown)]
        failed = [
            f"<li>{escape(f'{r.spec.problem_name}, {r.spec.method}, seed {r.spec.seed}: ')}"
            f"{escape(r.error['message'])}</li>"
            for r in self.table.failures.values()
        ]
        parts += [f"<ul>{''.join(failed)}</ul>"] * bool(failed)
        return "".join(parts)


def compare(
    problems: Any,
    methods: str | Iterable[str],
    *,
    seeds: int | Iterable[int] = 5,
    num_particles: int | Sequence[int] = (1, 4, 16),
    budget: int | Training = 200,
    executor: Any = None,
    folder: str | Path | None = None,
    watch: Callable[[Comparison], Any] | None = None,
    **settings: Any,
) -> Comparison:
    """Compare methods on problems: train each with the same budget, bound log Z, measure both KLs.

    Args:
        problems: as for ``Comparison``.
        methods: as for ``Comparison``.
        seeds: as for ``Comparison``.
        num_particles: as for ``Comparison``.
        budget: as for ``Comparison``.
        executor: as for ``map_runs``.
        folder: where results are kept; a call with the same folder computes what is missing.
        watch: called with the comparison after each result, to show how it fills.
        **settings: further fields of each ``RunSpec``.

    Returns:
        The comparison with all its results. A spec that failed is in ``table.errors()``.

    Raises:
        KeyboardInterrupt: as ever; its ``.comparison`` holds what was done.
        WorkerLostError: workers died; its ``.comparison`` holds what was done.
    """
    comparison = Comparison(
        problems,
        methods,
        seeds=seeds,
        num_particles=num_particles,
        budget=budget,
        **settings,
    )
    try:
        for _ in comparison.run(executor, folder):
            if watch is not None:
                watch(comparison)
    except BaseException as error:
        error.comparison = comparison
        raise
    return comparison


def _several(value: Any) -> list[Any]:
    """A list, from one or more; a description counts as one."""
    one = isinstance(value, str) or hasattr(value, "keys") or not isinstance(value, Iterable)
    values = [value] if one else list(value)
    if not values:
        raise ValueError("give at least one problem and one method; got none.")
    return values


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
