"""All stored results of a folder as one tidy table."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsmc_widgets.errors import as_list, check_kind
from tsmc_widgets.evaluation.estimates import frame_of
from tsmc_widgets.experiments.artifacts import DamagedFileError, read_file
from tsmc_widgets.experiments.execute import COLUMNS
from tsmc_widgets.experiments.runs import ResultFolder, RunResult
from tsmc_widgets.experiments.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

SPEC_COLUMNS = (
    "problem", "method", "form", "updates", "batch", "training_seed", "seed", "proposal",
)  # fmt: skip
LAST_COLUMNS = ("seconds", "key")
COUNTS = ("updates", "batch", "training_seed", "seed", "num_particles", "step", "run", "num_runs")


class ResultTable:
    """Results read from a folder, or taken from a stream; one row for each number measured.

    Args:
        source: a folder that ``map_runs`` wrote, or results.

    Attributes:
        results: those that succeeded, by the key of their spec.
        failures: those that failed and have not succeeded since.
        damaged: files that cannot be read, with what is wrong; ``map_runs`` makes them again.
    """

    def __init__(self, source: str | Path | Iterable[RunResult] = ()) -> None:
        self.folder = Path(source) if isinstance(source, str | Path) else None
        self.results: dict[str, RunResult] = {}
        self.failures: dict[str, RunResult] = {}
        self.damaged: dict[str, str] = {}
        self._known: dict[str, tuple[int, int]] = {}
        if self.folder is None:
            for result in as_list("source", source, at_least=0):
                check_kind("source", result, RunResult, "a folder, or results of map_runs")
                self.add(result)
            return
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(source)!r}: give the one that map_runs was given."
            )
        self.refresh()

    def __len__(self) -> int:
        """How many results there are."""
        return len(self.results)

    def add(self, result: RunResult) -> None:
        """Take one more result, from a stream."""
        key = result.spec.key
        if result.error is None:
            self.results[key] = result
            self.failures.pop(key, None)
        elif key not in self.results:
            self.failures[key] = result

    def refresh(self) -> int:
        """Read what is new in the folder; how many files that was."""
        if self.folder is None:
            return 0
        count = 0
        for path in sorted(self.folder.glob("*.json")):
            kind = path.name.removesuffix(".json").partition(".")[2]
            if kind not in ("", "error"):
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            state = (facts.st_mtime_ns, facts.st_size)
            if self._known.get(path.name) == state:
                continue
            self._read(path)
            self._known[path.name] = state
            count += 1
        return count

    def _read(self, path: Path) -> None:
        self.damaged.pop(path.name, None)
        try:
            found = read_file(path)
            spec = RunSpec.from_dict(found["spec"])
            rows, error = found.get("rows", []), found.get("error")
        except FileNotFoundError:
            return
        except (DamagedFileError, ValueError, TypeError, KeyError) as problem:
            self.damaged[path.name] = str(problem)
            return
        seconds = ResultFolder(self.folder).seconds(spec)
        self.add(RunResult(spec, rows, error, seconds, stored=True))

    def to_frame(self) -> pd.DataFrame:
        """Tidy table: what the spec says, then one measured number with its error and interval.

        ``quantity`` names the number, in nats but for shares of K; ``low`` and
        ``high`` are the ends of its 95 % interval; ``kind`` says whether it is a bound or an
        estimate.
        """
        columns = [*SPEC_COLUMNS, *COLUMNS, *LAST_COLUMNS]
        ordered = sorted(self.results.values(), key=_order)
        records = [
            _about(result) | row | {"seconds": result.seconds, "key": result.spec.key}
            for result in ordered
            for row in result.rows
        ]
        frame = frame_of(records, columns)
        return frame.astype(dict.fromkeys(COUNTS, "Int64"))

    def errors(self) -> pd.DataFrame:
        """One row for each spec that failed: what it was, and why."""
        columns = [*SPEC_COLUMNS, "error", "message", "traceback", "key"]
        records = [
            _about(result) | result.error | {"error": result.error["type"], "key": result.spec.key}
            for result in sorted(self.failures.values(), key=_order)
        ]
        return frame_of(records, columns)

    def __repr__(self) -> str:
        parts = [f"{len(self.results)} results"]
        parts += [f"{len(self.failures)} failures"] * bool(self.failures)
        parts += [f"{len(self.damaged)} damaged files"] * bool(self.damaged)
        where = "" if self.folder is None else f" in {str(self.folder)!r}"
        return f"<ResultTable: {', '.join(parts)}{where}>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self)[1:-1])}</p>{self.to_frame().to_html(escape=True)}"


def _about(result: RunResult) -> dict[str, Any]:
    spec, plan = result.spec, result.spec.training
    about: dict[str, Any] = {
        "problem": spec.problem_name,
        "method": spec.label,
        "proposal": spec.proposal or ("base" if spec.method == "none" else "twist"),
        "seed": spec.seed,
    }
    if plan is not None:
        about |= {
            "form": plan.form,
            "updates": plan.num_updates,
            "batch": plan.batch_size,
            "training_seed": plan.seed,
        }
    return about


def _order(result: RunResult) -> tuple:
    spec = result.spec
    training_seed = -1 if spec.training is None else spec.training.seed
    return (spec.problem_name, spec.label, training_seed, spec.seed, spec.key)
