"""What every view has on the Python side: its script and style, its saved forms, its page's wishes.

A view leaves its kernel in two ways: as plain HTML in a saved notebook, see ``Still``, and as one
file with its scripts and state, see ``write_page``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as ipw
import numpy as np
import traitlets
from IPython.display import DisplayHandle, display

from tsmc_widgets.errors import check_integer, check_kind, check_one_of, message_of, quoted
from tsmc_widgets.files import write_atomically
from tsmc_widgets.smc.trace import check_trace
from tsmc_widgets.widgets.controls import ClosesWhole, replace_in_cell, table
from tsmc_widgets.widgets.record import PageTraits, Recorder, array

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


_OFFLINE = (_HERE / "js" / "offline.js").read_text("utf-8")
_PAGE_STYLE = """
html { color-scheme: light dark; background: Canvas; color: CanvasText; }
#views { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); }
body { margin: 0 auto; padding: 16px; max-width: 1760px; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}<main id="views"></main>
<script type="application/json" id="state">{state}</script>
<script type="module">{script}</script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A widget of a page.

    Attributes:
        esm: its module, which ends by exporting what ``host`` makes.
        css: its style.
        runs: traits of each run; bytes become base64.
        state: traits that do not depend on the run.
    """

    esm: str
    css: str
    runs: dict[int, dict[str, Any]]
    state: dict[str, Any] = field(default_factory=dict)


def write_page(
    path: str | Path,
    *,
    title: str = "",
    parts: Sequence[Part],
    run: int,
    body: str = "",
    script: str = "",
    style: str = "",
) -> Path:
    """Write a view of runs that needs neither kernel nor network; it appears whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        title: of the page; empty for prompt and phi of the run that is shown first.
        parts: the widgets, from the top.
        run: the one that is shown first.
        body: HTML above the widgets.
        script: what else the page does; ``models`` are the widgets' models.
        style: of what stands in ``body``.

    Returns:
        The path.
    """
    path = Path(path)
    headers = [part.runs[run]["header"] for part in parts if "header" in part.runs[run]]
    title = title or f"“{headers[0]['prompt']}” {headers[0]['target']}"
    # Expressions with names of their own: modules share some of their sources.
    bodies = [part.esm.replace("export default ", "return ") for part in parts]
    modules = ",\n".join("(() => {\n" + body + "\n})()" for body in bodies)
    script = f"const widgets = [{modules}];\n{_OFFLINE}\n{script}"
    style = "\n".join(part.css for part in parts) + _PAGE_STYLE + style
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    state = {
        "run": run,
        "parts": [
            {
                "state": part.state,
                "runs": {str(at): _portable(traits) for at, traits in part.runs.items()},
            }
            for part in parts
        ],
    }
    page = _PAGE.format(
        policy=policy,
        title=html.escape(title),
        body=body,
        style=style,
        state=json.dumps(state).replace("<", "\\u003c"),
        script=script,
    )
    with write_atomically(path) as part:
        part.write_text(page, "utf-8", errors="backslashreplace", newline="\n")
    return path


def _portable(traits: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in traits.items()
    }


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MOST_CHARACTERS = 150_000
_TEXTS = 10
_STILL = "This is the last state of a page that was live. Run this cell again to have it back."
# Notebooks show the two outputs of a page one after the other: this HTML goes where the page has
# come, and the error of a page whose kernel has gone goes where this HTML stands.
_STILL_STYLE = (
    ".jp-OutputArea-child:has(.tsmc-still):has(+ .jp-OutputArea-child :is(.tsmc-watch, .pv)), "
    ".jp-OutputArea-child:has(.tsmc-still) + .jp-OutputArea-child > .jupyter-widgets:not(:has(*)) "
    "{ display: none }"
)


class Still(ipw.Widget):
    """A page whose saved output reads without kernel and widgets."""

    _handle: DisplayHandle | None = None

    def still(self) -> str:
        """Its last state, as HTML without scripts; empty where there is none."""
        raise NotImplementedError

    def renew_still(self) -> None:
        """Put its present state into the notebook's output."""
        if self._handle is not None:
            self._handle.update(self._bundle(), raw=True)

    def _ipython_display_(self, **_: Any) -> None:
        self._handle = display(self._bundle(), raw=True, display_id=True)
        if self.comm is not None:
            # Beside it nothing, for hosts that know no widgets.
            live = {WIDGET_VIEW: self.get_view_spec(), "text/html": "", "text/plain": ""}
            display(live, raw=True)

    def _bundle(self) -> dict[str, str]:
        body = self.still()
        if len(body) > MOST_CHARACTERS:
            body = ""
        shown = f"<style>{_STILL_STYLE}</style><p><em>{_STILL}</em></p>{body}"
        plain = f"{type(self).__name__}: run this cell again to have it back."
        return {"text/html": f'<div class="tsmc-still">{shown}</div>', "text/plain": plain}


def _curve(values: np.ndarray, name: str) -> str:
    """A line over the steps as an image, which needs no script."""
    finite = [(i, float(v)) for i, v in enumerate(values) if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    width, height = 300 / max(1, len(values) - 1), 60 / ((high - low) or 1.0)
    points = " ".join(f"{4 + i * width:.1f},{64 - (v - low) * height:.1f}" for i, v in finite)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="308" height="68">'
        f'<polyline fill="none" stroke="#0072B2" stroke-width="2" points="{points}"/></svg>'
    )
    ends = f"{name}: {low:.3g} to {high:.3g}".replace("-", "−")
    data = base64.b64encode(svg.encode()).decode()
    return f'<p>{ends}<br><img alt="{ends}" src="data:image/svg+xml;base64,{data}"></p>'


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


MAX_RUNS_OFFLINE = 32


class RunView(Still, FrontEnd, PageTraits):  # type: ignore[misc]
    """A view of one run of a trace at a time, whose record grows while the run goes on.

    Attributes:
        header: of the run on show.
        step: the step on show.
        run: the run on show.
        group: views of one group, if it is not empty, move together.
    """

    _takes: tuple[str, ...] = ("hello", "step", "run")
    _panels = False
    """Whether it shows panels: see ``Recorder``."""
    _stays: tuple[str, ...] = ()
    """Traits that a page without kernel gets, beside the runs."""

    header = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    run = traitlets.Int(0).tag(sync=True)
    group = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        trace: Any = None,
        *,
        exact_log_z: float | int | None = None,
        bracket: Any = None,
        replicates: Any = None,
        target: Any = None,
        run: int = 0,
        group: str = "",
    ) -> None:
        run = check_integer("run", run, at_least=0)
        check_kind("group", group, str, "a text")
        self._recorder = Recorder(panels=self._panels)
        self._shown: dict[str, Any] = {}
        state: dict[str, Any] = {"run": run, "group": group}
        # All of it at once: what a front end hears while it starts may be lost.
        if trace is not None:
            self._shown = {"trace": trace, "exact_log_z": exact_log_z, "bracket": bracket,
                           "replicates": replicates, "target": target}  # fmt: skip
            state |= self._recorder.encode(run=run, **self._shown)
        super().__init__(**state)

    @property
    def trace(self) -> Any:
        """The trace on show; None before there is one."""
        return self._shown.get("trace")

    def _ipython_display_(self, **options: Any) -> None:
        replace_in_cell(self)
        super()._ipython_display_(**options)

    def still(self) -> str:
        """The run on show: its estimate, its ESS and log Z_hat over the steps, and final texts."""
        if not self._shown:
            return ""
        trace, run = self.trace, self.run
        known = {name: self._shown[name] for name in ("exact_log_z", "replicates")}
        header = Recorder().encode(trace, run=run, **known)["header"]
        ess, log_z = (array(getattr(trace.columns, name))[run] for name in ("ess", "log_z"))
        facts = [
            f"“{header['prompt']}”",
            header["target"],
            f"{header['num_particles']} particles, step {header['steps_done']} of "
            f"{header['num_steps']}, run {run} of {len(header['runs'])}",
            *header["facts"],
        ]
        parts = [f"<p>{html.escape(' · '.join(facts))}</p>"]
        if len(ess):
            last = f"log Ẑ {log_z[-1]:.2f} nats, ESS {ess[-1]:.1f}"
            parts.append(f"<p>{last.replace('-', '−')}</p>")
            parts += [_curve(ess, "ESS over the steps"), _curve(log_z, "log Ẑ over the steps")]
        rows = [
            (f"{float(s['weight']):.3f}", f"{float(s['log_phi']):.2f}", s["text"][:400])
            for s in header["samples"][:_TEXTS]
        ]
        return "".join(parts) + (table(("weight", "log φ", "text"), rows) if rows else "")

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

    def update(
        self,
        trace: Any,
        *,
        exact_log_z: float | int | None = None,
        bracket: Any = None,
        replicates: Any = None,
        target: Any = None,
        run: int | None = None,
        run_id: int | None = None,
    ) -> None:
        """Show this trace instead; at most ten times a second. The play head stays in place.

        Args:
            trace: an ``SMCTrace``, finished or not.
            exact_log_z: as for the view itself.
            bracket: as for ``RunPanels``.
            replicates: as for the view itself.
            target: as for the view itself.
            run: which of the trace's runs; the one on show if None, where there is one of it.
            run_id: the same number again says that this is the same run, grown: then only new
                steps are sent.
        """
        shown = {"trace": trace, "exact_log_z": exact_log_z, "bracket": bracket,
                 "replicates": replicates, "target": target}  # fmt: skip
        self._put(shown, run, run_id)

    def part(self, **state: Any) -> Part:
        """This view as a part of a page without kernel, its runs encoded again.

        Every run of the trace is in it, up to ``MAX_RUNS_OFFLINE``; of more, only the one on show.

        Args:
            **state: further traits, such as ``group``.
        """
        if not self._shown:
            raise ValueError("there is no trace to write yet: give the view one first.")
        recorder, count = Recorder(panels=self._panels), self.trace.num_runs
        runs = range(count) if count <= MAX_RUNS_OFFLINE else [self.run]
        encoded = {run: recorder.encode(run=run, **self._shown) for run in runs}
        own = {name: getattr(self, name) for name in self._stays}
        return Part(self._esm, self._css, encoded, own | state)

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
