"""The potential as a list of factors that a person adds, changes and removes."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.widgets.factors import KINDS, FactorKind, Part, kind_of

_ADD = "add a factor …"
NOTHING = {"kind": "Constant"}
"""Stands for no factor at all: sigma is p0."""


class FactorRow(ipw.VBox):
    """One factor with its controls.

    Args:
        part: its description.
        changed: called when a person has changed it.
        removed: called with the row when a person takes it away.

    Attributes:
        part: the description that the controls make; that of before where they make none.
        error: why they make none; empty where they do.
    """

    def __init__(
        self, part: Part, changed: Callable[[], None], removed: Callable[[FactorRow], None]
    ) -> None:
        self.kind: FactorKind = kind_of(part)
        self.part = dict(part)
        self.error = ""
        self._changed = changed
        self.fields = self.kind.fields(part)
        self.remove = ipw.Button(
            description="×", tooltip=f"Remove: {self.kind.title}", layout={"width": "26px"}
        )
        self.remove.add_class("tw-remove")
        self.remove.on_click(lambda _: removed(self))
        title = ipw.Label(self.kind.title)
        title.add_class("tw-factor-title")
        self.note = ipw.HTML()
        self.note.add_class("tw-note")
        head = ipw.HBox([title, self.remove])
        head.add_class("tw-factor-head")
        super().__init__([head, *self.fields.values(), self.note])
        self.add_class("tw-factor")
        self._settle()
        for field in self.fields.values():
            field.observe(self._read, "value")

    def _read(self, _: Any) -> None:
        now = {name: field.value for name, field in self.fields.items()}
        self.error = ""
        try:
            part = self.kind.read(self.part, now)
            self.kind.obey(part)
            self.part = dict(part)
        except ValueError as error:
            self.error = str(error)
        self._settle()
        self._changed()

    def _settle(self) -> None:
        hidden = self.kind.hidden(self.part)
        for name, field in self.fields.items():
            field.layout.display = "none" if name in hidden else None
        text = self.error or self.kind.note
        self.note.value = f"<span>{html.escape(text)}</span>" if text else ""
        self.note.layout.display = None if text else "none"
        (self.add_class if self.error else self.remove_class)("tw-wrong")


class PotentialEditor(ipw.VBox):
    """All factors of phi, and a menu that adds one.

    Args:
        parts: the factors at first.
        changed: called after each change of a person.
    """

    def __init__(self, parts: Sequence[Part], changed: Callable[[], None]) -> None:
        self._changed = changed
        self.rows: list[FactorRow] = []
        self.menu = ipw.Dropdown(
            options=[(f"+ {_ADD}", ""), *((kind.title, kind.title) for kind in KINDS)],
            value="",
            layout={"width": "auto", "margin": "2px 0 0"},
        )
        self.menu.add_class("tw-add")
        self.empty = ipw.HTML(
            '<span class="tw-note">No factor: every text is as good as any other, σ = p₀.</span>'
        )
        self._list = ipw.VBox(layout={"width": "auto"})
        self._list.add_class("tw-factors")
        super().__init__([self._list, self.menu])
        self.menu.observe(self._add, "value")
        self.set(parts)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The factors' descriptions; that of phi = 1 where there is none."""
        return [dict(row.part) for row in self.rows] or [dict(NOTHING)]

    @property
    def error(self) -> str:
        """What is wrong with the first factor that is wrong."""
        return next((row.error for row in self.rows if row.error), "")

    def set(self, parts: Sequence[Part]) -> None:
        """Show these factors in place of those on show."""
        self._replace([self._row(part) for part in parts if part != NOTHING])

    def add(self, part: Part) -> FactorRow:
        """Add a factor, as the menu does."""
        row = self._row(part)
        self._replace([*self.rows, row])
        self._changed()
        return row

    def remove(self, row: FactorRow) -> None:
        """Take a factor away, as its button does."""
        self._replace([each for each in self.rows if each is not row])
        row.close()
        self._changed()

    def _row(self, part: Part) -> FactorRow:
        return FactorRow(part, self._changed, self.remove)

    def _replace(self, rows: list[FactorRow]) -> None:
        self.rows = rows
        self._list.children = rows or [self.empty]

    def _add(self, change: Any) -> None:
        title, self.menu.value = change["new"], ""
        if title:
            self.add(next(kind for kind in KINDS if kind.title == title).start)
