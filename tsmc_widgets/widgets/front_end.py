"""What every view has on the Python side: scripts and styles from files, and an answer to its page.

A front end imports one self-contained text, so the parts of a script are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from tsmc_widgets.errors import check_one_of, message_of
from tsmc_widgets.widgets.pages import PageTraits

_HERE = Path(__file__).parent


def join_scripts(names: Iterable[str]) -> str:
    """An ES module out of parts of ``js/``, in this order."""
    return _joined(_HERE / "js" / f"{name}.js" for name in names)


def join_styles(names: Iterable[str]) -> str:
    """A style sheet out of files beside this one, in this order."""
    return _joined(_HERE / f"{name}.css" for name in names)


def _joined(paths: Iterable[Path]) -> str:
    return "\n".join(path.read_text("utf-8") for path in paths)


def obey(asked: Mapping[str, Any], acts: Mapping[str, Callable[[], Any]]) -> str:
    """Do what was pressed in a view, its ``ask``; why that can not be, in words, or nothing."""
    try:
        act = asked.get("act")
        check_one_of("act", act, acts)
        acts[act]()
    except Exception as error:  # noqa: BLE001 - shown where it was pressed
        return message_of(error)
    return ""


@contextmanager
def showing(view: FrontEnd, what: str) -> Iterator[None]:
    """Say on the page what went wrong while something was shown there, and raise it."""
    try:
        yield
    except Exception as error:
        problem = f"The {what} goes on, but can not be shown: {error!r}"
        view.status = {"state": "failed", "text": "not shown", "error": problem}
        raise


class FrontEnd(anywidget.AnyWidget):
    """A view whose page can tell whether Python is there: it says a word, and hears it back."""

    hello = traitlets.Int(0).tag(sync=True)
    welcome = traitlets.Int(0).tag(sync=True)

    @traitlets.observe("hello")
    def _answer(self, change: Any) -> None:
        self.welcome = change["new"]


class RunView(FrontEnd, PageTraits):
    """A view of one run of a trace at a time, whose record grows while the run goes on.

    Attributes:
        header: of the run on show.
        step: the step on show.
        run: the run on show.
        group: views of one group, if it is not empty, move together.
    """

    header = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    run = traitlets.Int(0).tag(sync=True)
    group = traitlets.Unicode("").tag(sync=True)

    def __init__(self, recorder: Any, shown: dict[str, Any], run: int, **state: Any) -> None:
        self._recorder = recorder
        self._shown = shown if shown["trace"] is not None else {}
        # All of it at once: what a front end hears while it starts may be lost.
        if self._shown:
            state |= recorder.encode(run=run, **shown).traits
        super().__init__(run=run, **state)

    @property
    def trace(self) -> Any:
        """The trace on show; None before there is one."""
        return self._shown.get("trace")

    def _put(self, shown: dict[str, Any], run: int | None, run_id: int | None) -> None:
        """Show this instead; run None is the one on show, where the trace has it."""
        if run is None:
            run = self.run if self.run < shown["trace"].num_runs else 0
        traits = self._recorder.encode(run=run, run_id=run_id, **shown).traits
        self._shown = shown
        with self.hold_sync():
            # The header first: whoever hears of the new run must find it there already.
            for name, value in traits.items():
                setattr(self, name, value)
            self.run = run

    @traitlets.observe("run")
    def _show_run(self, change: Any) -> None:
        if self._shown and change["new"] != self.header.get("run"):
            self._put(self._shown, change["new"], None)
