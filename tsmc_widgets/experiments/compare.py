"""Methods compared on problems: equal budgets, several seeds, t-intervals over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsmc_widgets.errors import (
    as_list,
    check_callable,
    check_integer,
    check_kind,
    check_one_of,
    listed,
    quoted,
)
from tsmc_widgets.evaluation.estimates import AGREE, MeanOverRuns, frame_of, method_name
from tsmc_widgets.experiments.result_table import ResultTable
from tsmc_widgets.experiments.runs import RunResult, map_runs
from tsmc_widgets.experiments.spec import METHODS, TEXT_METHODS, RunSpec, Training
from tsmc_widgets.files import write_atomically
from tsmc_widgets.learning.objectives import METHODS as LEARNING_METHODS
from tsmc_widgets.twists.storage import CARD

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

LOWER_IS_BETTER = (
    "KL(q||σ)", "KL(σ||q)", "KL(q||σ) + KL(σ||q)", "gap", "upper", "upper, pooled",
)  # fmt: skip
HIGHER_IS_BETTER = ("lower", "lower, pooled")
REFERENCES = ("optimal",)
"""Methods that show what is possible and do not compete."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a number is about: methods and rules compete for the same place.

    Attributes:
        problem: its name.
        quantity: what was measured; "lower" and "upper" are the bounds on log Z, and "lower,
            pooled" and "upper, pooled" the tighter ones.
        num_particles: K; 0 where it does not matter.
    """

    problem: str
    quantity: str
    num_particles: int = 0


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A number for one method, over seeds.

    Attributes:
        place: what it is about.
        method: whose it is.
        values: one for each seed, in the order of the seeds.
        rule: when it resampled, in words; "" where nothing is resampled.
        best: whether it is best, and its interval apart from that of every other method.
        within: ends of a seed's own 95 % interval, each as its mean over seeds; NaN where a seed
            gives no interval.
    """

    place: Place
    method: str
    values: tuple[float, ...]
    rule: str = ""
    best: bool = False
    within: tuple[float, float] = (math.nan, math.nan)

    @property
    def mean(self) -> float:
        """Mean over seeds; infinite where one is."""
        return float(torch.tensor(self.values, dtype=torch.float64).mean())

    @property
    def agree(self) -> bool:
        """Whether several seeds have the same value but for rounding."""
        first = self.values[0]
        same = (value == first or abs(value - first) < AGREE for value in self.values)
        return len(self.values) > 1 and all(same)

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % t-interval over seeds; the whole line for one seed.

        Seeds that agree have no spread to show, and their interval is ``within``, which knows how
        many runs or samples were seen. Where there is none, as for counts, and where the value is
        infinite, both ends are the value.
        """
        if self.agree:
            known = math.isfinite(self.mean) and not any(map(math.isnan, self.within))
            return self.within if known else (self.mean, self.mean)
        values = torch.tensor(self.values, dtype=torch.float64)
        return MeanOverRuns.of(values).interval()

    @property
    def half_width(self) -> float:
        """Half of the interval; infinite for one seed."""
        low, high = self.interval
        return 0.0 if low == high else (high - low) / 2


def over_seeds(results: Iterable[RunResult], seeds: Sequence[int]) -> list[OverSeeds]:
    """Numbers of every place and method that has all its seeds, with the best marked.

    Args:
        results: one for each problem, method and seed.
        seeds: those that count; a method that lacks one of them at a place is left out there.
    """
    found: dict[tuple[Place, str, str], dict[int, Mapping]] = {}
    for result in results:
        for row in result.rows:
            place = place_of(result, row)
            if place is not None:
                own = found.setdefault((place, result.spec.label, row["rule"] or ""), {})
                own[result.spec.seed] = row
    whole = []
    for (place, method, rule), of_seed in found.items():
        if set(seeds) <= set(of_seed):
            rows = [of_seed[seed] for seed in seeds]
            low, high = (_mean(row.get(end) for row in rows) for end in ("low", "high"))
            values = tuple(row["value"] for row in rows)
            whole.append(OverSeeds(place, method, values, rule, within=(low, high)))
    return mark_best(whole)


def _mean(values: Iterable[float | None]) -> float:
    return float(np.mean([math.nan if value is None else value for value in values]))


def place_of(result: RunResult, row: Mapping) -> Place | None:
    """What a row of a result is about; None where methods do not compete in it."""
    quantity = row["quantity"]
    if row["step"] is not None or row["run"] is not None:
        return None
    if row["side"]:
        if row["kind"] == "estimate" or math.isnan(row["value"]):
            return None
        quantity = row["side"] if quantity == "log Z" else f"{row['side']}, pooled"
    return Place(result.spec.problem_name, quantity, int(row["num_particles"] or 0))


def split_quantity(quantity: str) -> tuple[str, str]:
    """A quantity as results name it: bounds are "log Z" with a side, others have no side."""
    side, _, pooled = quantity.partition(", ")
    if side not in ("lower", "upper"):
        return quantity, ""
    return ("log Z, pooled" if pooled else "log Z"), side


def mark_best(entries: Sequence[OverSeeds]) -> list[OverSeeds]:
    """The same entries, of which at most one for each place is marked as best."""
    rivals: dict[Place, list[OverSeeds]] = {}
    for entry in entries:
        if entry.method not in REFERENCES:
            rivals.setdefault(entry.place, []).append(entry)
    best = [winner for group in rivals.values() if (winner := _winner(group)) is not None]
    return [replace(entry, best=any(entry is winner for winner in best)) for entry in entries]


def _winner(group: Sequence[OverSeeds]) -> OverSeeds | None:
    """Whose interval lies beyond all others; None where there is none, or no rival."""
    quantity = group[0].place.quantity
    if len(group) < 2 or quantity not in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        return None
    sign = 1.0 if quantity in LOWER_IS_BETTER else -1.0

    def ends(entry: OverSeeds) -> tuple[float, float]:
        low, high = (sign * end for end in entry.interval)
        return (low, high) if sign > 0 else (high, low)

    first, *others = sorted(group, key=lambda entry: sign * entry.mean)
    if not math.isfinite(first.mean):
        return None
    apart = all(ends(first)[1] < ends(other)[0] for other in others)
    return first if apart else None


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "σ": r"$\sigma$", "φ": r"$\varphi$", "ψ": r"$\psi$", "±": r"$\pm$", "–": "--", "∞": r"$\infty$",
    "−": "$-$",
}  # fmt: skip
_SPECIAL = re.compile("|".join(re.escape(mark) for mark in _LATEX))
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts to be written down.

    Attributes:
        title: what the numbers are.
        columns: heads, that of the first column first.
        rows: a method's name and its cells.
        bold: which cells stand out, by (row, column).
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def of(cls, entries: Sequence[OverSeeds], methods: Sequence[str], *, title: str) -> Grid:
        """Numbers of one quantity; what a method lacks is a dash."""
        places = list(dict.fromkeys(entry.place for entry in entries))
        known = {(entry.method, entry.rule, entry.place): entry for entry in entries}
        setups = [(e.method, e.rule) for m in methods for e in entries if e.method == m]
        rules = {rule for _, rule in setups}
        rows, bold = [], set()
        for at, (method, rule) in enumerate(dict.fromkeys(setups)):
            cells = [known.get((method, rule, place)) for place in places]
            name = _row_label(method, rule, rules)
            rows.append((name, *(NOTHING if cell is None else cell_text(cell) for cell in cells)))
            bold |= {(at, i + 1) for i, cell in enumerate(cells) if cell is not None and cell.best}
        return cls(title, ("method", *_labels(places)), tuple(rows), frozenset(bold))

    def to_csv(self) -> str:
        """Comma-separated; what a spreadsheet takes for a formula begins with an apostrophe."""
        head = [no_formula(name) for name in self.columns]
        frame = self._frame().map(no_formula)
        return frame.to_csv(header=head, index=False, lineterminator="\n")

    def to_latex(self) -> str:
        """A ``tabular`` with the rules of booktabs; the best in bold."""
        style = self._style(latex, r"\textbf{%s}")
        layout = "l" + "r" * (len(self.columns) - 1)
        table = style.to_latex(hrules=True, column_format=layout)
        return f"% {' '.join(self.title.split())}\n{table}"

    def to_html(self) -> str:
        """A table whose texts are escaped; the best in bold."""
        style = self._style(escape, "<strong>%s</strong>")
        return style.to_html(exclude_styles=True, caption=escape(self.title))

    def _frame(self) -> pd.DataFrame:
        """The cells; columns are numbered, since two problems may have equal names."""
        return frame_of(list(self.rows), range(len(self.columns)))

    def _style(self, inert: Callable[[str], str], bold: str) -> Styler:
        """The table with every text made ``inert`` for its format, and the best in ``bold``."""
        style = self._frame().style.hide(axis="index").format(inert)
        style = style.format_index(lambda at: inert(self.columns[at]), axis="columns")
        for row, column in self.bold:
            style = style.format(lambda text: bold % inert(text), subset=([row], [column]))
        return style

    def to_markdown(self) -> str:
        """A table for a README; the best in bold."""
        lines = ["| " + " | ".join(map(_pipe, self.columns)) + " |"]
        lines.append("|---|" + "---:|" * (len(self.columns) - 1))
        for at, row in enumerate(self.rows):
            cells = [
                f"**{_pipe(cell)}**" if (at, i) in self.bold else _pipe(cell)
                for i, cell in enumerate(row)
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def cell_text(entry: OverSeeds) -> str:
    """``1.07 ± 0.12``: the mean over seeds and half of its 95 % interval."""
    mean, half = entry.mean, entry.half_width
    if math.isnan(mean):
        return NOTHING
    if math.isinf(mean):
        return "∞" if mean > 0 else "−∞"
    digits = 3 if half < 0.05 else 2
    middle, reach = (f"{value:.{digits}f}".replace("-", "−") for value in (mean, half))
    if not middle.strip("−0."):
        middle = middle.removeprefix("−")
    return middle if math.isinf(half) or half < 1e-9 else f"{middle} ± {reach}"


def latex(text: str) -> str:
    """Text with everything that LaTeX would take for a command written as it reads."""
    return _SPECIAL.sub(lambda found: _LATEX[found[0]], text)


def _row_label(method: str, rule: str, rules: set[str]) -> str:
    """The method, and its resampling rule where the table has several."""
    rules = rules - {""}
    if not rule or len(rules) < 2:
        return method
    if rule != "never" and len(rules - {"never"}) == 1:
        return f"{method}, SMC"
    return f"{method}, {method_name(rule)}"


def _labels(places: Sequence[Place]) -> list[str]:
    """Shortest names that tell the columns apart."""
    several = len({place.num_particles for place in places}) > 1
    return [
        f"{place.problem}, K = {place.num_particles}" if several else place.problem
        for place in places
    ]


def no_formula(text: str) -> str:
    """Text that no spreadsheet takes for a formula; a number stays one."""
    number = re.fullmatch(r"[+-][\d.]+(e[+-]?\d+)?", text, re.IGNORECASE)
    formula = text.startswith(("=", "+", "-", "@", "\t", "\r")) and not number
    return f"'{text}" if formula else text


def _pipe(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def page(tables: Iterable[str]) -> str:
    """HTML tables as a page of its own, light and dark."""
    style = (
        ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem}"
        "table{border-collapse:collapse;margin-bottom:2rem}caption{text-align:left;padding:.4em 0}"
        "th,td{padding:.25em .9em .25em 0;border-top:1px solid #8886;font-variant-numeric:"
        "tabular-nums;text-align:right}th:first-child,td:first-child{text-align:left}"
    )
    return (
        f'{BEGINS["html"]}<html lang="en"><head><meta charset="utf-8"><title>Comparison</title>'
        f"<style>{style}</style></head><body>{''.join(tables)}</body></html>\n"
    )


BEGINS = {
    "csv": "problem,method,quantity,side,rule,",
    "tex": "% tsmc_widgets comparison",
    "html": "<!doctype html><!-- tsmc_widgets comparison -->",
}
"""The first characters of what ``Comparison.export`` writes."""

TITLES = {
    "KL(q||σ)": "KL(q||σ), nats",
    "KL(σ||q)": "KL(σ||q), nats",
    "gap": "gap between the bounds on log Z, nats",
    "lower": "lower bound on log Z, nats",
    "upper": "upper bound on log Z, nats",
    "lower, pooled": "lower bound on log Z, runs pooled, nats",
    "upper, pooled": "upper bound on log Z, samples pooled, nats",
}


def check_method(method: Any) -> str:
    """A method's name, or the folder of a saved twist as text; an error for anything else."""
    names = [name for name in METHODS if name != "saved"]
    if isinstance(method, str) and method in names:
        return method
    if isinstance(method, str | Path) and (Path(method) / CARD).is_file():
        return str(method)
    raise ValueError(
        f"method must be one of {listed(names)}, or the folder of a saved twist; got "
        f"{quoted(method)}."
    )


def spec_of(
    problem: Any,
    method: str,
    seed: int,
    training: Training | None,
    measures: Sequence[str],
    **settings: Any,
) -> RunSpec:
    """The spec of a method, or of the folder of a saved twist, on a problem.

    Args:
        problem: as for ``RunSpec``.
        method: as ``check_method`` gives it.
        seed: of the training and of the runs that measure it.
        training: what a learning method may spend.
        measures: of methods that give weights; the others are measured by their texts.
        **settings: further fields.
    """
    twist = {} if method in METHODS else {"twist": method}
    return RunSpec(
        problem=problem,
        method="saved" if twist else method,
        training=replace(training, seed=seed) if training is not None else None,
        seed=seed,
        measures=("texts",) if method in TEXT_METHODS else measures,
        **twist,
        **settings,
    )


class Comparison:
    """Problems by methods by seeds: what is to be run, and what has come of it so far.

    Args:
        problems: names in ``PROBLEMS``, or descriptions as for ``RunSpec``.
        methods: as for ``RunSpec``: "none", "optimal", learning methods; or folders of saved
            twists.
        seeds: how many, or which; each seeds a training and the runs that measure it.
        num_particles: one or more K for the bounds.
        budget: what every learning method may spend: updates, or a ``Training`` of which all but
            the seed counts. Batch size and pool of exact samples are the same for all.
        learning_rates: of methods that have one of their own, in place of the budget's.
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
        learning_rates: Mapping[str, float] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        methods = as_list("methods", methods)
        methods = [check_method(method) for method in methods]
        several = as_list("seeds", seeds)
        if several == [seeds]:
            several = list(range(check_integer("seeds", seeds)))
        check_kind("learning_rates", learning_rates, Mapping, "a mapping of methods to rates")
        for method in learning_rates:
            check_one_of("method of learning_rates", method, LEARNING_METHODS)
        if not isinstance(budget, Training):
            budget = Training(num_updates=budget)
        plans = {
            method: replace(budget, learning_rate=learning_rates.get(method, budget.learning_rate))
            for method in methods
            if method in LEARNING_METHODS
        }
        settings = {"measures": ("bounds", "kl"), "num_particles": num_particles, **settings}
        if set(methods) & set(TEXT_METHODS) and "texts" not in settings["measures"]:
            settings["measures"] = (*as_list("measures", settings["measures"]), "texts")
        specs = [
            spec_of(problem, method, seed, plans.get(method), **settings)
            for seed in dict.fromkeys(several)
            for method in methods
            for problem in as_list("problems", problems)
        ]
        self._hold(specs)

    @classmethod
    def of(cls, specs: Iterable[RunSpec]) -> Comparison:
        """A comparison of these specs, such as methods that differ from problem to problem."""
        self = cls.__new__(cls)
        self._hold(list(specs))
        return self

    def _hold(self, specs: list[RunSpec]) -> None:
        self.specs = specs
        self.methods = list(dict.fromkeys(spec.label for spec in self.specs))
        self.seeds = tuple(dict.fromkeys(spec.seed for spec in self.specs))
        self.table = ResultTable()

    def run(
        self,
        executor: Executor | None = None,
        folder: str | Path | None = None,
        *,
        progress: bool = False,
    ) -> Iterator[RunResult]:
        """Results as they finish; each is in the table when it is given out.

        Leaving the loop starts nothing more. Arguments are as for ``map_runs``.
        """
        stream = map_runs(self.specs, executor, folder, progress=progress)
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
        return _quantities(self.entries())

    def to_frame(self) -> pd.DataFrame:
        """One row for each problem, method and number: its mean over seeds and 95 % interval.

        Columns as in ``ResultTable.to_frame``, so that the same figures read both; ``value`` is the
        mean over seeds and ``num_seeds`` the n of Student's t (n = 5 takes 2.776). ``best`` is true
        where the interval lies beyond those of all other methods; the optimal twist does not
        compete. ``exact`` is log Z where it is known.
        """
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
        return frame_of(records)

    def grid(self, quantity: str) -> Grid:
        """One quantity as a table of texts, methods by problems.

        Raises:
            ValueError: nothing of that name was measured, or not yet by all seeds.
        """
        entries = self.entries()
        check_one_of("quantity", quantity, _quantities(entries))
        title = f"{TITLES.get(quantity, quantity)}: mean over {len(self.seeds)} seeds"
        title += " ± half of its 95 % t-interval (of the runs of a seed, where all seeds agree); "
        title += "bold where apart from all others"
        own = [entry for entry in entries if entry.place.quantity == quantity]
        return Grid.of(own, self.methods, title=title)

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
            text = frame.to_csv(index=False, lineterminator="\n")
        elif kind == "tex":
            tables = [self.to_latex(quantity) for quantity in self.quantities]
            text = "\n".join([BEGINS["tex"], *tables])
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
            f"<li>{escape(f'{r.spec.problem_name}, {r.spec.label}, seed {r.spec.seed}: ')}"
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
    progress: bool = False,
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
        progress: whether to show a bar of the results that have come.
        **settings: further fields of each ``RunSpec``.

    Returns:
        The comparison with all its results. A spec that failed is in ``table.errors()``.

    Raises:
        KeyboardInterrupt: as ever; its ``.comparison`` holds what was done.
        WorkerLostError: workers died; its ``.comparison`` holds what was done.
    """
    if watch is not None:
        check_callable("watch", watch)
    comparison = Comparison(
        problems,
        methods,
        seeds=seeds,
        num_particles=num_particles,
        budget=budget,
        **settings,
    )
    try:
        for _ in comparison.run(executor, folder, progress=progress):
            if watch is not None:
                watch(comparison)
    except BaseException as error:
        error.comparison = comparison
        raise
    return comparison


def _quantities(entries: Iterable[OverSeeds]) -> list[str]:
    return list(dict.fromkeys(entry.place.quantity for entry in entries))


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        with write_atomically(Path(path)) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return text
