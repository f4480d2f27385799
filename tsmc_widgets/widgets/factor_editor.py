"""Kinds of factors of phi that a person can put together, each with its controls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import message_of, quoted, shortened
from tsmc_widgets.targets.functions import (
    TypedFunction,
    register_function,
    registered_function,
    registered_functions,
    unwrapped,
)
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.widgets.controls import (
    STAR_NAMES,
    Note,
    Slider,
    button,
    classed,
    close_whole,
    dress,
    split_words,
    table,
)

Part = Mapping[str, Any]
Typing = Callable[[], Sequence[str]] | None
STARS, HOSTILITY = "storybook/stars", "storybook/hostility"
_HOSTILE, _CALM = "hostile", "not hostile"
_ANY_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Control:
    """One control of a kind of factor.

    Attributes:
        name: of the control, and of the argument that it sets.
        make: the control that shows a description.
        changes: the arguments that a value of the control sets; that of its own name if None.
    """

    name: str
    make: Callable[[Part], ipw.ValueWidget]
    changes: Callable[[Any], Part] | None = None

    def read(self, value: Any) -> Part:
        """The arguments that its value sets."""
        return {self.name: value} if self.changes is None else self.changes(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorKind:
    """One row of the table of kinds: the controls of a factor.

    Attributes:
        title: its name in the menu.
        start: the factor as it is added.
        controls: what a person sets.
        fits: whether a description is of this kind; those of the kind of ``start`` if None.
        read: the description that the controls' values make, from the one before and the values;
            each control sets its own arguments if None.
        hidden: names of controls that do nothing for a description.
        note: what a person should know, under the controls.
    """

    title: str
    start: Part
    controls: tuple[Control, ...]
    fits: Callable[[Part], bool] | None = None
    read: Callable[[Part, Mapping[str, Any]], Part] | None = None
    hidden: Callable[[Part], tuple[str, ...]] = lambda _: ()
    note: str | Callable[[], str] = ""

    def matches(self, part: Part) -> bool:
        """Whether the controls can show a description."""
        return part["kind"] == self.start["kind"] if self.fits is None else self.fits(part)

    def described(self, part: Part, now: Mapping[str, Any]) -> Part:
        """The description that the controls' values make."""
        if self.read is not None:
            return self.read(part, now)
        changes = [control.read(now[control.name]) for control in self.controls]
        return _with(part, **{name: value for each in changes for name, value in each.items()})


def plain(value: float) -> float | int:
    """A number without a needless fraction, as JSON and code then show it."""
    return int(value) if float(value).is_integer() else float(value)


_control = partial(dress, label="64px", margin="0")


def _text(
    name: str,
    label: str,
    tooltip: str,
    *,
    show: Callable[[Part], str] | None = None,
    changes: Callable[[str], Part] | None = None,
    placeholder: str = "",
) -> Control:
    def make(part: Part) -> ipw.Text:
        value = str(part[name]) if show is None else show(part)
        return _control(
            ipw.Text, label, tooltip, value=value, placeholder=placeholder, continuous_update=False
        )

    return Control(name, make, changes)


def _choice(name: str, label: str, tooltip: str, options: Sequence[Any]) -> Control:
    def make(part: Part) -> ipw.Dropdown:
        value = part[name]
        chosen = options[value - 1] if isinstance(value, int) else value
        return _control(ipw.Dropdown, label, tooltip, options=options, value=chosen)

    return Control(name, make)


def _power(part: Part) -> Slider:
    beta = float(part.get("beta", 1))
    return _control(
        Slider, "power β", "The factor to this power: more insists",
        value=beta, min=min(0.5, beta), max=max(20.0, beta), step=0.5, readout_format=".3g",
    )  # fmt: skip


POWER = Control("beta", _power, lambda value: {"beta": plain(value)})


def _with(part: Part, **changes: Any) -> dict[str, Any]:
    """The part with some options changed; None and a power of 1 are left out."""
    merged = {**part, **changes}
    return {
        name: value
        for name, value in merged.items()
        if value is not None and (name, value) != ("beta", 1)
    }


def _words(title: str, kind: str, word: str, tooltip: str) -> FactorKind:
    words = _text(
        "words", "words", tooltip,
        show=lambda part: ", ".join(part["args"]),
        changes=lambda text: {"args": split_words(text) or [" "]},
        placeholder="word",
    )  # fmt: skip
    return FactorKind(title=title, start={"kind": kind, "args": [word]}, controls=(words,))


def _tokens(title: str, kind: str, tooltip: str) -> FactorKind:
    def changes(text: str) -> Part:
        patterns = [[one.strip() for one in p.split("+")] for p in split_words(text)]
        return {"args": [p[0] if len(p) == 1 else p for p in patterns]}

    def fits(part: Part) -> bool:
        if part["kind"] != kind or not all(isinstance(p, str | list) for p in part["args"]):
            return False
        flat = [t for p in part.get("args", ()) for t in ([p] if isinstance(p, str) else p)]
        return all(isinstance(t, str) and "+" not in t for t in flat)

    def show(part: Part) -> str:
        return ", ".join(p if isinstance(p, str) else " + ".join(p) for p in part["args"])

    tokens = _text(
        "tokens", "tokens", tooltip,
        show=show,
        changes=changes,
        placeholder="token, one + next",
    )  # fmt: skip
    return FactorKind(
        title=title, start={"kind": kind, "args": ["rain"]}, controls=(tokens,), fits=fits
    )


_MODES = {
    "p(hostile)^β": "hostile", "p(calm)^β": "calm", "exp(β score)": "tempered",
    "score at least η": "at_least", "score at most η": "at_most",
}  # fmt: skip


def _mode(part: Part) -> str:
    """Which way of asking about hostility a description is; empty for another."""
    if part.get("model", part.get("reward")) != HOSTILITY or "scope" in part:
        return ""
    if part["kind"] == "ClassProbability":
        return {_HOSTILE: "hostile", _CALM: "calm", 1: "hostile", 0: "calm"}.get(part["label"], "")
    if part["kind"] == "TemperedReward" and "reward_max" not in part:
        return "tempered"
    bounds = [name for name in ("at_least", "at_most") if part.get(name) is not None]
    return bounds[0] if part["kind"] == "RewardThreshold" and len(bounds) == 1 else ""


def _mode_menu(part: Part) -> ipw.Dropdown:
    return _control(
        ipw.Dropdown, "asks for", "What is asked of a classifier's hostility score",
        options=list(_MODES.items()), value=_mode(part),
    )  # fmt: skip


def _score(part: Part, most: float = 8.0, step: float = 0.1) -> Slider:
    eta = part.get("at_least", part.get("at_most")) or 0.0
    return _control(
        Slider, "score η", "φ is 1 on this side of the score, else 0",
        value=eta, min=min(-most, eta), max=max(most, eta), step=step, readout_format=".3g",
    )  # fmt: skip


def _read_hostility(_: Part, now: Mapping[str, Any]) -> Part:
    mode, beta = now["mode"], plain(now["beta"])
    if mode in ("hostile", "calm"):
        label = _HOSTILE if mode == "hostile" else _CALM
        return _with({"kind": "ClassProbability", "model": HOSTILITY, "label": label}, beta=beta)
    if mode == "tempered":
        return {"kind": "TemperedReward", "reward": HOSTILITY, "beta": beta}
    return {"kind": "RewardThreshold", "reward": HOSTILITY, mode: plain(now["eta"])}


_SENTIMENTS = [("positive", "vader/positive"), ("negative", "vader/negative")]
_SENTIMENT_MODES = [("exp(β score)", "TemperedReward"), ("score at least η", "RewardThreshold")]


def _asks_sentiment(part: Part) -> bool:
    """Whether the controls of sentiment can show a description."""
    own = {"TemperedReward": {"beta", "reward_max"}, "RewardThreshold": {"at_least"}}
    known = part.keys() - {"kind", "reward", "scope"} == own.get(part["kind"])
    own_judge = known and part["reward"] in dict(_SENTIMENTS).values()
    return own_judge and part.get("reward_max", 1) == 1


def _read_sentiment(part: Part, now: Mapping[str, Any]) -> Part:
    if now["kind"] == "TemperedReward":
        level = {"beta": plain(now["beta"]), "reward_max": 1.0}
    else:
        level = {"at_least": plain(now["eta"])}
    scope = {"scope": part["scope"]} if "scope" in part else {}
    return {"kind": now["kind"], "reward": now["reward"], **level, **scope}


def _lengths(part: Part) -> ipw.IntRangeSlider:
    return _control(
        ipw.IntRangeSlider, "tokens", "At least and at most so many",
        value=(part.get("at_least") or 0, part.get("at_most") or _ANY_LENGTH),
        min=0, max=_ANY_LENGTH,
    )  # fmt: skip


def _bounds_of(value: tuple[int, int]) -> Part:
    low, high = value
    return {"at_least": low, "at_most": None if high == _ANY_LENGTH else high}


def _functions(part: Part) -> ipw.Dropdown:
    # Chosen and never typed: whoever reaches the page must not name what is imported.
    names = dict.fromkeys(["", *registered_functions(), part["function"]])
    return _control(
        ipw.Dropdown, "function", "Gives log φ of a text, in nats",
        options=[(name or "choose …", name) for name in names], value=part["function"],
    )  # fmt: skip


def _grammar(part: Part) -> ipw.Textarea:
    return _control(
        ipw.Textarea, "grammar", "Lark with a rule start, or GBNF with a rule root",
        value=str(part["grammar"]), rows=3, continuous_update=False,
    )  # fmt: skip


def _function_note() -> str:
    if registered_functions():
        return "One that was given to tw.register_function, or as functions= to the page."
    return (
        "None is registered: run tw.register_function(your_function) in a cell, where "
        "your_function gives log φ of a text; then remove this factor and add it again."
    )


def _object(text: str) -> Part:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"A factor must be a JSON object; got {quoted(text)}: {error}.") from error
    if not isinstance(found, dict) or "kind" not in found:
        raise ValueError(f'A factor must be an object with a "kind"; got {quoted(text)}.')
    return found


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A schema must be JSON: {error}.") from error


_MASKED = "The look-ahead twist masks what it rules out. Let texts end at EOS."
_UNCONDITIONAL = [name for name, problem in PROBLEMS.items() if not problem.conditional]

KINDS: tuple[FactorKind, ...] = (
    _words("contains a word", "ContainsWord", "castle", "At least one of these words or phrases"),
    _words("avoids words", "AvoidsWord", "broken", "None of these words or phrases"),
    FactorKind(
        title="matches a regular expression",
        start={"kind": "MatchesRegex", "pattern": r"\bcastle\b"},
        controls=(_text("pattern", "pattern", "As Python's re.search reads it"),),
    ),
    FactorKind(
        title="rating in stars",
        start={"kind": "ClassProbability", "model": STARS, "label": "5 stars", "beta": 4},
        controls=(_choice("label", "stars", "How a classifier rates the text", STAR_NAMES), POWER),
        fits=lambda part: (
            part["kind"] == "ClassProbability"
            and part.get("model") == STARS
            and part.get("label") in (*STAR_NAMES, *range(1, 6))
        ),
    ),
    FactorKind(
        title="hostility",
        start={"kind": "ClassProbability", "model": HOSTILITY, "label": _HOSTILE},
        controls=(Control("mode", _mode_menu), POWER, Control("eta", _score)),
        fits=lambda part: bool(_mode(part)),
        read=_read_hostility,
        hidden=lambda part: ("beta",) if _mode(part).startswith("at_") else ("eta",),
    ),
    FactorKind(
        title="sentiment (VADER)",
        start={"kind": "TemperedReward", "reward": "vader/positive", "beta": 5, "reward_max": 1.0},
        controls=(
            _choice("reward", "score", "How much VADER finds it so, from −1 to 1", _SENTIMENTS),
            _choice("kind", "asks for", "What is asked of the score", _SENTIMENT_MODES),
            POWER,
            Control("eta", partial(_score, most=1.0, step=0.05)),
        ),
        fits=_asks_sentiment,
        read=_read_sentiment,
        hidden=lambda part: ("eta",) if part["kind"] == "TemperedReward" else ("beta",),
    ),
    FactorKind(
        title="leads to a text (infilling)",
        start={"kind": "Continuation", "observed": " and they lived happily"},
        controls=(_text("observed", "text", "What p₀ should find likely next"), POWER),
        fits=lambda part: (
            part["kind"] in ("Continuation", "Infilling") and isinstance(part.get("observed"), str)
        ),
        note="Begin with a space where a new word begins.",
    ),
    FactorKind(
        title="length before EOS",
        start={"kind": "Length", "at_least": 4, "at_most": 12},
        controls=(Control("range", _lengths, _bounds_of),),
        note="Only where texts end at EOS do they differ in length.",
    ),
    FactorKind(
        title="a Python function",
        start={"kind": "TextFunction", "function": ""},
        controls=(Control("function", _functions),),
        note=_function_note,
    ),
    FactorKind(
        title="is JSON of a schema",
        start={"kind": "JSONSchema", "schema": {"enum": ["yes", "no"]}},
        controls=(
            _text("schema", "schema", "A JSON schema",
                  show=lambda part: json.dumps(part["schema"]),
                  changes=lambda text: {"schema": _schema(text)}),
        ),
        note=_MASKED,
    ),
    FactorKind(
        title="follows a grammar",
        start={"kind": "Grammar", "grammar": 'start: "yes" | "no"'},
        controls=(Control("grammar", _grammar),),
        note=_MASKED,
    ),
    FactorKind(
        title="is a full match",
        start={"kind": "FullMatch", "pattern": " (yes|no)"},
        controls=(_text("pattern", "pattern", "A regular expression for the whole text"),),
        note=_MASKED,
    ),
    _tokens("contains tokens", "ContainsToken", "At least one of these; + between those in a row"),
    _tokens("avoids tokens", "AvoidsToken", "None of these; + between those in a row"),
    FactorKind(
        title="a class of another classifier",
        start={"kind": "ClassProbability", "model": "name or folder", "label": "1"},
        controls=(
            _text("model", "model", "A name or folder of transformers"),
            _text(
                "label", "class", "Its name or number",
                changes=lambda text: {"label": int(text) if text.isdigit() else text},
            ),
            POWER,
        ),
        fits=lambda part: part["kind"] == "ClassProbability" and "model" in part,
    ),
    FactorKind(
        title="the class that was observed",
        start={"kind": "ClassConditional", "model": STARS, "observed": "5 stars"},
        controls=(_choice("observed", "class o", "One twist serves them all", STAR_NAMES), POWER),
        fits=lambda part: part["kind"] == "ClassConditional" and part.get("model") == STARS,
    ),
    FactorKind(
        title="the potential of a named problem",
        start={"kind": "OfProblem", "problem": "rainy-week"},
        controls=(_choice("problem", "problem", "Whose φ it is", _UNCONDITIONAL), POWER),
        fits=lambda part: part["kind"] == "OfProblem" and part["problem"] in _UNCONDITIONAL,
    ),
    FactorKind(
        title="anything, as JSON",
        start={"kind": "CountToken", "args": ["yes"], "at_least": 1},
        controls=(
            _text("json", "factor", "The kind and its arguments",
                  show=lambda part: json.dumps(dict(part))),
        ),
        fits=lambda _: True,
        read=lambda _, now: _object(now["json"]),
    ),
)  # fmt: skip
"""Every kind, in the order of the menu; the last fits whatever no other does."""


def kind_of(part: Part) -> FactorKind:
    """The kind whose controls can show a description."""
    return next(kind for kind in KINDS if kind.matches(part))


START = """def log_phi(text):
    # In nats; float("-inf") rules a text out.
    return -abs(len(text.split()) - 12)
"""


class CodeEditor(ipw.VBox):
    """Source of ``log_phi``, what it gives for a few texts, and a button that takes it.

    Whatever is typed is run in the kernel: never show one to anybody who may not run code there.

    Args:
        name: of the function that is edited; one that was not typed starts again.
        texts: gives the texts of the preview.
        use: called with the name under which the function was registered.
    """

    def __init__(
        self, name: str, texts: Callable[[], Sequence[str]], use: Callable[[str], None]
    ) -> None:
        known = registered_function(name)
        self._texts, self._use = texts, use
        self.area = ipw.Textarea(
            known.source if isinstance(known, TypedFunction) else START,
            rows=6,
            continuous_update=False,
            layout={"width": "auto"},
        )
        self.area.tooltip = "Python that defines log_phi(text)"
        self.button = button("Use this φ", "Run with it")
        self.error = Note("tw-wrong-code", role="alert")
        self.preview = ipw.HTML()
        super().__init__([self.area, self.error, self.preview, self.button])
        classed(self, "tw-code-editor")
        self.area.observe(lambda _: self.check(), "value")
        self.button.on_click(lambda _: self._press())
        self.check()

    def check(self) -> TypedFunction | None:
        """Show what the function gives for the texts, or what is wrong with it."""
        texts = list(self._texts())
        try:
            function = TypedFunction(self.area.value)
            values = [_log_phi(function, text) for text in texts]
        except ValueError as error:
            self.error.say(str(error))
            self.preview.value, self.button.disabled = "", True
            return None
        self.error.say("")
        rows = [
            (f"{value:.2f}", shortened(text, 90)) for value, text in zip(values, texts, strict=True)
        ]
        self.preview.value = table(("log φ", "text"), rows)
        self.button.disabled = False
        return function

    def _press(self) -> None:
        function = self.check()
        if function is not None:
            self._use(register_function(function, name=function.name))


def _log_phi(function: TypedFunction, text: str) -> float:
    found = function(text)
    try:
        value = float(unwrapped(found))
    except (TypeError, ValueError) as error:
        raise ValueError(f"log_phi must return a number, in nats: {error}.") from error
    if math.isnan(value) or value == math.inf:
        raise ValueError(f"log_phi must be a number or −∞; it gave {value} for “{text[:60]}”.")
    return value


_ADD = "add a factor …"
NOTHING = {"kind": "Constant"}
"""Stands for no factor at all: sigma is p0."""


class FactorRow(ipw.VBox):
    """One factor with its controls.

    Args:
        part: its description.
        changed: called when a person has changed it.
        removed: called with the row when a person takes it away.
        typing: gives the texts on which a function that is typed here is tried; None where no
            code may be typed.

    Attributes:
        part: the description that the controls make; that of before where they make none.
        error: why they make none; empty where they do.
    """

    def __init__(
        self,
        part: Part,
        changed: Callable[[], None],
        removed: Callable[[FactorRow], None],
        typing: Typing = None,
    ) -> None:
        self.kind: FactorKind = kind_of(part)
        self.part = dict(part)
        self.error = ""
        self._changed = changed
        self.fields = {control.name: control.make(part) for control in self.kind.controls}
        self.remove = classed(button("×", f"Remove: {self.kind.title}"), "tw-remove")
        self.remove.layout.width = "26px"
        self.remove.on_click(lambda _: removed(self))
        title = classed(ipw.Label(self.kind.title), "tw-factor-title")
        self.note = Note()
        head = classed(ipw.HBox([title, self.remove]), "tw-factor-head")
        self.code: CodeEditor | None = None
        if typing is not None and self.kind.start["kind"] == "TextFunction":
            self.code = CodeEditor(part["function"], typing, self._take)
        super().__init__([head, *self.fields.values(), self.note, *filter(None, [self.code])])
        self.add_class("tw-factor")
        self._settle()
        for field in self.fields.values():
            field.observe(self._read, "value")

    def _take(self, function: str) -> None:
        """Choose a function that was just typed."""
        menu = self.fields["function"]
        if function not in dict(menu.options).values():
            menu.options = [*menu.options, (function, function)]
        menu.value = function

    def _read(self, _: Any) -> None:
        now = {name: field.value for name, field in self.fields.items()}
        self.error = ""
        try:
            self.part = dict(self.kind.described(self.part, now))
        except ValueError as error:
            self.error = message_of(error)
        self._settle()
        self._changed()

    def _settle(self) -> None:
        hidden = self.kind.hidden(self.part)
        for name, field in self.fields.items():
            field.layout.display = "none" if name in hidden else None
        note = self.kind.note
        text = self.error or (note if isinstance(note, str) else note())
        if self.code is not None and not self.error:
            text = "Choose a function that was registered, or write one:"
        self.note.say(text)
        (self.add_class if self.error else self.remove_class)("tw-wrong")


class PotentialEditor(ipw.VBox):
    """All factors of phi, and a menu that adds one.

    Args:
        parts: the factors at first.
        changed: called after each change of a person.
        likely: gives a word that the model may well write; empty where none is known.
        typing: as for ``FactorRow``.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        changed: Callable[[], None],
        likely: Callable[[], str] = lambda: "",
        typing: Typing = None,
    ) -> None:
        self._changed, self._likely, self._typing = changed, likely, typing
        self.rows: list[FactorRow] = []
        self.menu = ipw.Dropdown(
            options=[(f"+ {_ADD}", ""), *((kind.title, kind.title) for kind in KINDS)],
            value="",
            layout={"width": "auto", "margin": "2px 0 0"},
        )
        self.menu.add_class("tw-add")
        self.empty = Note()
        self._list = classed(ipw.VBox(layout={"width": "auto"}), "tw-factors")
        super().__init__([self._list, self.empty, self.menu])
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
        self._changed()

    def _row(self, part: Part) -> FactorRow:
        return FactorRow(part, self._changed, self.remove, self._typing)

    def _replace(self, rows: list[FactorRow]) -> None:
        gone = [row for row in self.rows if row not in rows]
        self.rows = rows
        self._list.children = rows
        self.empty.say("" if rows else "No factor: every text is as good as any other, σ = p₀.")
        close_whole(*gone)

    def _add(self, change: Any) -> None:
        title, self.menu.value = change["new"], ""
        if title:
            self.add(self._start(next(kind for kind in KINDS if kind.title == title).start))

    def _start(self, part: Part) -> Part:
        """A new factor of a kind, about what there is here."""
        if part["kind"] == "ContainsWord" and (word := self._likely()):
            return {**part, "args": [word]}
        if part["kind"] == "TextFunction" and (names := registered_functions()):
            return {**part, "function": names[0]}
        return part
