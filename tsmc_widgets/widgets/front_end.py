"""What every view has on the Python side: its script and style, and an answer to its page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from tsmc_widgets.errors import check_integer, check_one_of, message_of, quoted
from tsmc_widgets.smc.trace import check_trace
from tsmc_widgets.widgets.controls import ClosesWhole, replace_in_cell
from tsmc_widgets.widgets.record import PageTraits
from tsmc_widgets.widgets.still import Still, still_of_run

_HERE = Path(__file__).parent
_IMPORT = {
    ".js": re.compile(r'^import (\{[^}]*\}) from "\./(.+)";\n', re.MULTILINE),
    ".css": re.compile(r'^@import ()"\./(.+)";\n', re.MULTILINE),
}
_EXPORT = re.compile(r"^export (?:async )?(?:const|function|class) (\w+)", re.MULTILINE)


def join_modules(entry: Path | str) -> str:
    """One self-contained text from an ES module or a style sheet and all that it imports.

    Each file comes once, after what it imports. An imported module becomes a function that is
    called once and returns its exports, so that names it does not export stay its own.

    Args:
        entry: a ``.js`` or ``.css`` file, relative to this folder; imports are relative to it.

    Raises:
        ImportError: for circular imports, a missing file, and a name that is not exported.
    """
    joined: dict[Path, str] = {}
    exports: dict[Path, list[str]] = {}

    def add(path: Path, importers: tuple[Path, ...]) -> None:
        chain = (*importers, path)
        if path in importers:
            raise ImportError("circular import: " + " -> ".join(each.name for each in chain))
        if path in joined:
            return
        if not path.is_file():
            raise ImportError(
                f"{chain[-2].name if importers else 'a widget'} imports {path.name}: no such file."
            )
        source = path.read_text("utf-8")
        exports[path] = _EXPORT.findall(source)
        pattern = _IMPORT[path.suffix]
        for names, target in pattern.findall(source):
            imported = path.parent / target
            add(imported, chain)
            missing = set(re.findall(r"\w+", names)) - set(exports[imported])
            if missing:
                raise ImportError(
                    f"{path.name} imports {sorted(missing)} of {target}: not exported."
                )
        if path.suffix == ".css":
            joined[path] = pattern.sub("", source)
            return
        source = pattern.sub(lambda found: f"const {found[1]} = {Path(found[2]).stem}$;\n", source)
        if importers:
            source = _EXPORT.sub(lambda found: found[0].removeprefix("export "), source)
            names = ", ".join(exports[path])
            source = f"const {path.stem}$ = (() => {{\n{source}return {{ {names} }};\n}})();\n"
        joined[path] = source

    add(_HERE / entry, ())
    return "\n".join(joined.values())


def run_action(asked: Mapping[str, Any], acts: Mapping[str, Callable[[], Any]]) -> str:
    """Run the action that a view asks for; returns the message of its error, or nothing."""
    try:
        act = asked.get("act")
        check_one_of("act", act, acts)
        acts[act]()
    except Exception as error:  # noqa: BLE001 - shown where it was pressed
        return message_of(error)
    return ""


class FrontEnd(ClosesWhole, anywidget.AnyWidget):
    """A view whose page sets the traits that are its own, to values that they may have.

    Anything else that it sends changes nothing, and is answered with an error until the page sends
    what is right. It can tell whether Python is there: it says a word, and hears it back.

    Attributes:
        status: ``state``, ``text``, ``error`` and more of what is shown.
    """

    _takes: tuple[str, ...] = ("hello",)
    """Traits that the page may set."""
    _refusal = ""

    status = traitlets.Dict().tag(sync=True)
    hello = traitlets.Int(0).tag(sync=True)
    welcome = traitlets.Int(0).tag(sync=True)

    def _handle_msg(self, msg: Any) -> None:
        data = msg.get("content", {}).get("data") if isinstance(msg, Mapping) else None
        state = data.get("state", {}) if isinstance(data, Mapping) else None
        if not isinstance(state, Mapping) or not isinstance(data.get("method"), str):
            self._refuse(f"the page sent a message that is none: {quoted(data)}")
            return
        super()._handle_msg(msg)

    def set_state(self, sync_data: Mapping[str, Any]) -> None:
        """Take what the page sends."""
        try:
            for name in sync_data:
                check_one_of("what a page sets", name, self._takes)
            super().set_state(sync_data)
        except Exception as error:  # noqa: BLE001 - answered on the page
            self._refuse(message_of(error))
            return
        if self._refusal and self.status.get("error") == self._refusal:
            self.status = {**self.status, "error": ""}

    def _refuse(self, problem: str) -> None:
        self._refusal = problem
        self.status = {**self.status, "error": problem}
        self.send_state(list(self._takes))

    @traitlets.observe("hello")
    def _answer(self, change: Any) -> None:
        self.welcome = change["new"]


class RunView(Still, FrontEnd, PageTraits):
    """A view of one run of a trace at a time, whose record grows while the run goes on.

    Attributes:
        header: of the run on show.
        step: the step on show.
        run: the run on show.
        group: views of one group, if it is not empty, move together.
    """

    _takes = ("hello", "step", "run")

    header = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    run = traitlets.Int(0).tag(sync=True)
    group = traitlets.Unicode("").tag(sync=True)

    def __init__(self, recorder: Any, shown: dict[str, Any], run: int, **state: Any) -> None:
        run = check_integer("run", run, at_least=0)
        self._recorder = recorder
        self._shown = shown if shown["trace"] is not None else {}
        # All of it at once: what a front end hears while it starts may be lost.
        if self._shown:
            state |= recorder.encode(run=run, **shown)
        super().__init__(run=run, **state)

    @property
    def trace(self) -> Any:
        """The trace on show; None before there is one."""
        return self._shown.get("trace")

    def _ipython_display_(self, **options: Any) -> None:
        replace_in_cell(self)
        super()._ipython_display_(**options)

    def still(self) -> str:
        """The run on show, its final texts and estimates."""
        names = ("exact_log_z", "replicates")
        options = {name: self._shown[name] for name in names if name in self._shown}
        return still_of_run(self.trace, self.run, options) if self._shown else ""

    @traitlets.validate("step", "run")
    def _check_place(self, proposal: Any) -> int:
        """The step or run; one that is not there is refused, and that on show stays."""
        name, value = proposal["trait"].name, proposal["value"]
        count = math.inf if self.trace is None or name == "step" else self.trace.num_runs
        if not 0 <= value < count:
            allowed = "at least 0" if count == math.inf else f"one of 0 to {count - 1}"
            # The one error on which traitlets puts back what it was.
            raise traitlets.TraitError(f"{name} must be {allowed}; got {value}.")
        return value

    def _put(self, shown: dict[str, Any], run: int | None, run_id: int | None) -> None:
        """Show this instead; run None is the one on show, where the trace has it."""
        check_trace(shown["trace"])
        if run is None:
            run = self.run if self.run < shown["trace"].num_runs else 0
        traits = self._recorder.encode(run=run, run_id=run_id, **shown)
        self._shown = shown
        with self.hold_sync():
            # The header first: whoever hears of the new run must find it there already.
            for name, value in traits.items():
                setattr(self, name, value)
            self.run = run
        if shown["trace"].steps_done == shown["trace"].num_steps:
            self.renew_still()

    @traitlets.observe("run")
    def _show_run(self, change: Any) -> None:
        if self._shown and change["new"] != self.header.get("run"):
            self._put(self._shown, change["new"], None)


class TrainView(FrontEnd):
    """Shows what Python puts into its traits, and says in ``ask`` what was pressed.

    Attributes:
        header: what is trained.
        curves: loss, ESS and bounds of every method.
        looks: comparison with the optimal twist, and texts, of the last evaluations.
        status: ``state``, ``text``, ``error``, ``stale`` and ``note`` of the training.
        folder: where Save writes.
        ask: the last press: ``act`` and a counter ``n``.
    """

    _esm = join_modules("js/train_view.js")
    _css = join_modules("train_view.css")
    _takes = ("hello", "folder", "ask")

    header = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)
    looks = traitlets.Dict().tag(sync=True)
    folder = traitlets.Unicode("my_twist").tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)


class CompareView(FrontEnd):
    """Shows what Python puts into its traits, and says in ``ask`` what was pressed.

    Attributes:
        menu: what can be chosen.
        settings: what is chosen; changed by both sides.
        plan: how each run stands.
        results: what was measured, by problem.
        status: ``state``, ``text``, ``error``, counts, what is running, ``left`` in seconds.
        stem: where exports are written.
        ask: the last press: ``act`` and a counter ``n``.
    """

    _esm = join_modules("js/compare_view.js")
    _css = join_modules("compare_view.css")
    _takes = ("hello", "settings", "stem", "ask")

    menu = traitlets.Dict().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    plan = traitlets.List().tag(sync=True)
    results = traitlets.Dict().tag(sync=True)
    stem = traitlets.Unicode("comparison").tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)


class DebugView(FrontEnd):
    """Shows what Python says of a twist, and says in ``ask`` what was pressed.

    Attributes:
        data: verdict, charts, texts and tables.
        step: the step on show.
        group: views of one group, if it is not empty, move together.
        budget: tokens of rollouts at most.
        ask: the last press: ``act``, a counter ``n``, and what a fork needs.
    """

    _esm = join_modules("js/debug_view.js")
    _css = join_modules("debug_view.css")
    _takes = ("hello", "ask", "step", "budget")

    data = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(1).tag(sync=True)
    group = traitlets.Unicode("").tag(sync=True)
    budget = traitlets.Int(0).tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)
