"""The page on which inference is composed, run and questioned."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import (
    PageFormatError,
    as_list,
    check_kind,
    check_one_of,
    check_path,
    message_of,
    set_integers,
    whole_number,
)
from tsmc_widgets.experiments.code import code_of, noise_words, words_of
from tsmc_widgets.experiments.execute import TwistCache, start_spec
from tsmc_widgets.experiments.spec import TEXT_METHODS, RunSpec
from tsmc_widgets.files import load_json, page_path, write_atomically
from tsmc_widgets.models.checkpoint import progress_told
from tsmc_widgets.models.loading import load_language_model, model_facts
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.smc.replay import Recording, ReplaySession
from tsmc_widgets.targets.description import (
    describe_problem,
    formula_of,
    models_of,
    named_functions,
    parse_problem,
    prompt_text,
)
from tsmc_widgets.targets.functions import find_function, register_function
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.twists.storage import save_twist
from tsmc_widgets.widgets.controls import Note, button, classed, cockpit, made_by_a_cell
from tsmc_widgets.widgets.particle_view import RunPanels
from tsmc_widgets.widgets.run_page import RunPage, explain_dead
from tsmc_widgets.widgets.session import Progress, no_progress_bars
from tsmc_widgets.widgets.train_page import TrainSession
from tsmc_widgets.widgets.twist_debugger import TwistDebugger
from tsmc_widgets.widgets.watch import NEXT_TOKENS, PresetBar, RunSettings
from tsmc_widgets.widgets.workbench_rail import ModelFields, ProblemPanel, SamplerPanel, rail_of

FORMAT = "tsmc_widgets.Workbench"
VERSION = 1
BEGINS = f'{{\n "format": "{FORMAT}"'
"""The first characters of a saved page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkbenchState:
    """What is on screen.

    Attributes:
        spec: the run, in the form that the controls have: one K, one rule, the proposal named.
        pinned: the run that is kept beside it as A; None for none.
        run: which of the R runs is on show.
        replay: whether a change of phi alone re-weights the record where that is valid.
    """

    spec: RunSpec
    pinned: RunSpec | None = None
    run: int = 0
    replay: bool = True

    def __post_init__(self) -> None:
        """Bring the runs into the controls' form."""
        set_integers(self, run=0)
        check_one_of("replay", self.replay, (True, False))
        object.__setattr__(self, "spec", normal(self.spec))
        if self.pinned is not None:
            object.__setattr__(self, "pinned", normal(self.pinned))

    @property
    def functions(self) -> tuple[str, ...]:
        """Python functions that it names, which JSON alone cannot bring back."""
        specs = [self.spec] if self.pinned is None else [self.spec, self.pinned]
        names = [name for spec in specs for name in named_functions(spec.problem)]
        return tuple(dict.fromkeys(names))

    def check(self, given: Set[str] = frozenset()) -> None:
        """Raise ValueError where a page of a stranger may not name what this one names.

        That is a function that is not registered here, or a model, twist or classifier outside of
        the notebook's folder.

        Args:
            given: places that Python named.
        """
        for name in self.functions:
            find_function(name)
        for spec in filter(None, (self.spec, self.pinned)):
            check_places(spec, given)

    def to_json(self) -> str:
        """JSON for people to read; ``from_json`` reads it back."""
        whole = {
            "format": FORMAT,
            "version": VERSION,
            "needs_functions": list(self.functions),
            "spec": self.spec.to_dict(),
            "pinned": None if self.pinned is None else self.pinned.to_dict(),
            "run": self.run,
            "replay": self.replay,
        }
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> WorkbenchState:
        """The state that ``to_json`` wrote.

        Raises:
            PageFormatError: the text is no such thing.
        """
        try:
            given = load_json(text)
        except ValueError as error:
            raise PageFormatError(
                f"A saved workbench must be a JSON object; got {text[:60]!r}: {error}"
            ) from error
        if not isinstance(given, Mapping) or given.get("format") != FORMAT:
            raise PageFormatError(
                f"This is no saved workbench: its format must be {FORMAT!r}; got {text[:60]!r}."
            )
        version = whole_number(given.get("version", 0))
        if version is None or version > VERSION:
            raise PageFormatError(
                f"The saved workbench is of version {given['version']!r}, and this one reads up to "
                f"{VERSION}: update tsmc_widgets."
            )
        pinned = given.get("pinned")
        try:
            return cls(
                spec=RunSpec.from_dict(given.get("spec")),
                pinned=None if pinned is None else RunSpec.from_dict(pinned),
                run=given.get("run", 0),
                replay=given.get("replay", True),
            )
        except (ValueError, TypeError) as error:
            raise PageFormatError(f"The saved workbench cannot be shown: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write it to a file; an existing one is replaced whole."""
        path = Path(path)
        with write_atomically(path) as part:
            # Lone surrogates become what JSON writes for them.
            part.write_text(self.to_json(), encoding="utf-8", errors="backslashreplace")
        return path

    @classmethod
    def read(cls, path: str | Path) -> WorkbenchState:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            PageFormatError: it is none of a workbench.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r} to load a workbench from.")
        return cls.from_json(path.read_text(encoding="utf-8", errors="replace"))


def normal(spec: RunSpec) -> RunSpec:
    """A spec in the form that the controls have: one K, one rule, the proposal named.

    Raises:
        ValueError: it is no run with weights, or trains a twist.
    """
    if spec.learns or spec.method in TEXT_METHODS:
        raise ValueError(
            f"A workbench shows runs with weights; method {spec.method!r} "
            + ("trains a twist: train it in tw.TrainSession, and hand that over as train=."
               if spec.learns else "gives texts alone: measure it with tw.execute.")
        )  # fmt: skip
    proposal = "" if spec.method == "none" else spec.proposal or "twist"
    problem = spec.problem
    if isinstance(problem, str) and PROBLEMS[problem].conditional:
        problem = describe_problem(problem)
    elif isinstance(problem, Mapping) and isinstance(problem["potential"], Mapping):
        problem = {**problem, "potential": [problem["potential"]]}
    return spec.with_(
        problem=problem,
        proposal=proposal,
        rule=spec.rule[:1],
        num_particles=as_list("num_particles", spec.num_particles)[:1],
        twist_power=1.0 if spec.method == "none" else spec.twist_power,
    )


def places_of(spec: RunSpec) -> set[str]:
    """Names and folders that a run reads: of its twist, its model and its classifiers."""
    places = {spec.twist, spec.lm, spec.classifier, *models_of(spec.problem)}
    return {str(place) for place in places} - {""}


def check_places(spec: RunSpec, given: Set[str] = frozenset()) -> None:
    """Raise ValueError where a run reads what is outside of the notebook's folder.

    Args:
        spec: of the run.
        given: places that Python named.
    """
    for place in places_of(spec) - given:
        page_path(place)


def replay_words(
    *, reweighed: bool, why_not: str, before: dict[str, Any] | None, now: dict[str, Any]
) -> tuple[str, str]:
    """Which of the two was done, and why.

    Args:
        reweighed: whether the record was re-weighted.
        why_not: what stood against it; empty if no replay was asked for.
        before: the run before, in words; None for none.
        now: this run, in words.
    """
    if reweighed:
        return "Re-weighted", (
            "the recorded run under the new φ: ψ and q do not depend on φ and every decision to "
            "resample came out the same, so this is what a fresh run on the same noise gives, "
            "number for number. No model was called."
        )
    if before is None:
        return "", ""
    changed = [name for name in now if before.get(name) != now.get(name)]
    done = f"Run again on {noise_words(before, now)}"
    if changed != ["φ"]:
        return done, ""
    if now["twist ψ"] in ("look-ahead", "optimal"):
        return done, f"because the {now['twist ψ']} twist is made of φ, and steers every step."
    return done, f"because {why_not}." if why_not else ""


class FileRow(ipw.HBox):
    """A path with buttons that save the page there, or load it from there.

    Args:
        **actions: what each button does with the path: gives what to say, and raises where it
            cannot.
    """

    def __init__(self, **actions: Callable[[str], str]) -> None:
        self.path = ipw.Text(value="workbench.json", layout={"width": "170px"})
        self.path.tooltip = "A file beside the notebook"
        self.message = Note(role="status", margin="0")
        tooltips = {
            "save": "Write all that is on the page to this file",
            "load": "Show what was saved in this file",
        }
        self.buttons = {}
        for name, act in actions.items():
            self.buttons[name] = button(name.title(), tooltips[name])
            self.buttons[name].on_click(lambda _, act=act: self._press(act))
        super().__init__([self.path, *self.buttons.values(), self.message])
        self.add_class("tw-file")

    def _press(self, act: Callable[[str], str]) -> None:
        try:
            self.message.say(act(self.path.value.strip()))
        except Exception as error:  # noqa: BLE001 - shown beside the button
            self.message.say(message_of(error))


_REPLAY = (
    "After a change of φ alone, re-weight the recorded run where that gives exactly the trace "
    "of a fresh run on the same noise"
)

Shown = RunSpec | WorkbenchState | str | Mapping[str, Any] | None


class Workbench(RunPage):
    """Compose a potential, choose how to sample, and watch: every change is run or re-weighted.

    Shown as the last line of a cell. What is on screen is ``spec``, a ``RunSpec``; ``code`` is the
    Python that makes the same run, and ``save`` and ``load`` keep the page. Runs are computed in a
    background thread; ``session``, ``trace`` and ``target`` are at hand in the next cell.

    Args:
        shown: a ``RunSpec``; the name or description of a problem; what ``state`` gave; None
            starts with reviews of five stars.
        train: a ``TrainSession`` whose twist, as it stands, is one of the twists to choose.
        functions: Python functions that factors may name: by name, or a list of functions and of
            texts such as "module:function". See ``register_function``.
        folder: where twists that were just trained are kept, for a spec names a folder.
        **changes: fields of the ``RunSpec``, such as ``num_particles=128``.
    """

    def __init__(
        self,
        shown: Shown = None,
        *,
        train: TrainSession | None = None,
        functions: Mapping[str, Any] | Sequence[Any] = (),
        folder: str | Path = "workbench_twists",
        **changes: Any,
    ) -> None:
        self.train, self.folder = train, check_path("folder", folder)
        if train is not None:
            check_kind("train", train, TrainSession, "a TrainSession")
        _register(functions)
        state = _state_of(shown, changes)
        super().__init__(panels=RunPanels())
        self.add_class("tw-workbench")
        self._spec = state.spec
        self._twists = TwistCache()
        self._recording: Recording | None = None
        self._before: dict[str, Any] | None = None
        self._then: RunSpec | None = None
        self._run_wanted: int | None = None
        self._given: set[str] = set()
        self.presets = PresetBar(self.view, lambda preset: self.show(preset.spec))
        typing = self._some_texts if made_by_a_cell() else None
        self.problem = ProblemPanel(state.spec.problem, self._moved, self._likely_word, typing)
        self.sampler = SamplerPanel(
            state.spec,
            self.problem.described,
            self._moved,
            trained=None if train is None else self._trained_label,
        )
        self.formula = Note("", tag="p")
        self.refusal = Note("tw-wrong-page", role="alert")
        self.replayed = Note("tw-replay")
        self.replay = button("re-weight where valid", _REPLAY, ipw.ToggleButton, value=state.replay)
        self.file = FileRow(
            save=lambda path: f"saved to {self.save(page_path(path, begins=BEGINS))}",
            load=self._load,
        )
        self.debug_button = button("Debug this twist")
        self.debug_button.on_click(lambda _: self._open_debugger())
        self.bench.add_tools([self.replay, self.present, self.debug_button], [self.file])
        phi = classed(ipw.VBox([self.formula, self.replayed]), "tw-formula")
        self.model = ModelFields(self.problem, self.sampler)
        self.sentence = rail_of(self.problem, self.sampler, self.model)
        chooser = [self.problem.fields["problem"], self.problem.note]
        rail = classed(ipw.VBox([*chooser, self.sentence, self.sampler.line, phi]), "tw-rail")
        main = ipw.VBox([self.refusal, self.bench])
        self.children = [self.presets, cockpit(rail, main)]
        self._restore(state, rest=0.0)

    @property
    def spec(self) -> RunSpec:
        """The run on screen."""
        return self._spec

    @property
    def state(self) -> WorkbenchState:
        """All that is on screen: the run, the one pinned beside it, which of R is shown."""
        pinned = None if self.bench.pinned is None else self.bench.pinned.spec
        return WorkbenchState(
            spec=self._spec, pinned=pinned, run=self.view.run, replay=self.replay.value
        )

    @property
    def code(self) -> str:
        """Python that makes the run on screen, to the byte where as many threads compute.

        The page leaves a core to kernel and browser; see ``torch.set_num_threads``.
        """
        return code_of(self._spec, top_k=NEXT_TOKENS)

    def show(self, shown: Shown) -> None:
        """Show another run, as if by hand; a pinned one stays."""
        self._put(_state_of(shown, {}).spec)

    def set(self, **changes: Any) -> None:
        """Change fields of the spec: ``workbench.set(method="look-ahead", num_particles=128)``."""
        if "method" in changes:
            changes = {"twist": "", "twist_sha256": "", **changes}
        if changes.get("method") == "none":
            changes = {"proposal": "", **changes}
        self._put(normal(self._spec.with_(**changes)))

    def save(self, path: str | Path = "workbench.json") -> Path:
        """Write the page to a file; numbers come back by running it again."""
        return self.state.save(path)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Workbench:
        """The page that ``save`` wrote; takes ``train``, ``functions`` and ``folder``.

        A file is never trusted: ``Workbench(WorkbenchState.read(path))`` says that it may name
        models and twists elsewhere.

        Raises:
            ValueError: the file is none of a workbench, names a Python function that is not
                registered here, or a model or twist outside of the notebook's folder.
        """
        state = WorkbenchState.read(path)
        _register(options.pop("functions", ()))
        state.check()
        return cls(state, **options)

    def debug(self, **options: Any) -> TwistDebugger:
        """The debugger of this run's twist, on its problem, with its particles and noise."""
        if self.session is None:
            raise ValueError("there is no run to debug yet: wait for one.")
        return TwistDebugger.from_run(self.session, **options)

    def _open_debugger(self) -> None:
        """Show the debugger under the run, in place of the one before."""
        try:
            opened = self.debug()
        except Exception as error:  # noqa: BLE001 - shown on the page
            self.refusal.say(message_of(error))
            return
        rest = [each for each in self.children if isinstance(each, TwistDebugger)]
        self.children = [*(each for each in self.children if each not in rest), opened]
        for each in rest:
            each.close()

    def explain(self, progress: Progress) -> str:
        """What stopped the run, or in which runs nothing is left."""
        if progress.state == "done":
            return explain_dead(progress.trace, self._asked)
        return super().explain(progress)

    def shown(self, progress: Progress) -> None:
        """Say whether the run was re-weighted; keep it for the next."""
        session = self.session
        if self._run_wanted is not None and self._run_wanted < progress.trace.num_runs:
            self.view.run, self._run_wanted = self._run_wanted, None
        now = words_of(self._asked)
        done, why = replay_words(
            reweighed=bool(session.reweighed), why_not=session.why_not, before=self._before, now=now
        )
        self.replayed.say(why, bold=done)
        proposes = isinstance(session.config.proposal, TwistInduced)
        self.sampler.show_what_matters(only_proposes=proposes and session.config.twist is None)
        if progress.state != "done":
            return
        self._recording, self._before = session.recording, now
        if self._then is not None:
            then, self._then = self._then, None
            self.pin()
            self._begin(then, rest=0.0)

    def _restore(self, state: WorkbenchState, rest: float | None = None) -> None:
        """Show a state: a pinned run is made first, then the other beside it."""
        self.replay.value = state.replay
        # Of a run that is not there yet: shown with its first frame.
        self._run_wanted = state.run
        if self.view.trace is None:
            self.view.run = state.run
        self._put(state.spec if state.pinned is None else state.pinned, rest=rest)
        if state.pinned is not None:
            self._then = state.spec
            self._display(state.spec)

    def _put(self, spec: RunSpec, rest: float | None = None) -> None:
        self._display(spec)
        self._begin(spec, rest=rest)

    def _display(self, spec: RunSpec) -> None:
        """Set every control."""
        self._given |= places_of(spec)
        self.problem.set(spec.problem)
        self.sampler.set(spec, self.problem.described)
        self.model.unfold_what_is_set()
        self._spec = spec
        self._describe()

    def _moved(self) -> None:
        """A control was moved: read them all, and run."""
        try:
            spec = self._read()
        except Exception as error:  # noqa: BLE001 - shown on the page
            self.refusal.say(message_of(error))
            return
        self._begin(spec)

    def _read(self) -> RunSpec:
        if self.sampler.wants_trained:
            self._take_trained()
        if self.problem.editor.error:
            raise ValueError(self.problem.editor.error)
        problem = self.problem.problem
        name = problem if isinstance(problem, str) else problem["name"]
        if self.problem.take_choice():
            self.sampler.leave(self.problem.described)
        lm = "" if self.problem.model_is_new else self._spec.lm
        values = self.sampler.values(name)
        spec = normal(self._spec.with_(problem=problem, lm=lm, **values))
        check_places(spec, self._given)
        return spec

    def _begin(self, spec: RunSpec, rest: float | None = None) -> None:
        self._spec = spec
        self._describe()

        def make() -> ReplaySession:
            recording = self._recording if self.replay.value else None
            # Toys do without transformers, which takes seconds to import.
            toy = parse_problem(spec.problem).table is not None and not spec.lm
            with nullcontext() if toy else no_progress_bars():
                self._load_model(spec, toy=toy)
                return start_spec(spec, top_k=NEXT_TOKENS, twists=self._twists, recording=recording)

        self.launch(spec, make, rest=rest)

    def _load_model(self, spec: RunSpec, *, toy: bool) -> None:
        """Load the model of a run, in its thread; a new one that cannot be is taken back."""
        facts = ""
        try:
            if not toy:
                name = spec.lm or parse_problem(spec.problem).model
                where: dict[str, Any] = {"device": spec.device or None, "dtype": spec.dtype or None}
                with progress_told(self._tell):
                    lm = load_language_model(name, **where)
                facts = model_facts(lm) if self.problem.model_is_new else ""
        except Exception as error:
            if self.problem.model_is_new and spec is self._spec:
                self.problem.take_model_back(error)
                self._spec = spec.with_(problem=self.problem.problem)
                self._describe()
            raise
        if self.problem.model_is_new and spec is self._spec:
            self.problem.take_model(facts)

    def _tell(self, words: str) -> None:
        self.view.status = {"state": "running", "text": words}

    def _describe(self) -> None:
        """Formula, lesson and code of the spec; whatever was wrong before is gone."""
        self.refusal.say("")
        self.sampler.fit(self.problem.described)
        self.sentence.say(self._spec)
        self.formula.say(formula_of(self._spec.problem))
        self.presets.show(self._spec)
        try:
            code = self.code
        except Exception as error:  # noqa: BLE001 - the run itself shows what is wrong
            code = f"# {type(error).__name__}: {error}"
        self.view.share = {"code": code, "spec": self._spec.to_json()}

    def _load(self, path: str) -> str:
        """Show what was saved in a file; gives what to say."""
        state = WorkbenchState.read(page_path(path))
        state.check(self._given)
        while self.bench.pinned is not None:
            self.unpin()
        self._restore(state)
        return f"loaded from {path}"

    def _some_texts(self) -> list[str]:
        """Three different texts of the newest run, on which a typed function is tried."""
        trace = self.trace
        if trace is None or not trace.done or trace.prompt is None:
            return [prompt_text(describe_problem(self._spec.problem)["prompt"])]
        return list(dict.fromkeys(f"{trace.prompt}{text}" for text in trace.final_texts[0]))[:3]

    def _likely_word(self) -> str:
        """The word that the model finds likeliest after the prompt of the newest run."""
        target, now = self.target, self.problem.described
        ran = now if target is None else describe_problem(self._asked.problem)
        if target is None or any(ran[name] != now[name] for name in ("model", "prompt")):
            return ""
        log_probs = target.lm.prefill(target.prompt_tokens.unsqueeze(0)).log_probs[0]
        likeliest = log_probs.topk(min(20, len(log_probs))).indices.tolist()
        words = [target.lm.token_text(token).strip() for token in likeliest]
        return next((word for word in words if word.isalpha() and len(word) > 2), "")

    def _trained_label(self) -> str:
        trainers = self.train.trainers
        if not trainers:
            return "nothing yet"
        method, trainer = next(iter(trainers.items()))
        return f"{method}, {trainer.done} updates"

    def _take_trained(self) -> None:
        """Keep the twist of the training as it stands, and choose that."""
        folder = snapshot(self.train, self.folder)
        self._given.add(str(folder))
        values = {"method": "saved", "twist": folder, "twist_sha256": ""}
        self.sampler.set(self._spec.with_(**values), self.problem.described)


def snapshot(train: TrainSession, folder: Path) -> Path:
    """Save the first twist of a training between two updates, under a name that says what it is.

    Raises:
        ValueError: nothing was trained yet.
    """
    if not train.trainers:
        raise ValueError("The training has no twist yet: press Start there first.")
    part = folder / f"{uuid.uuid4().hex[:8]}.part"

    def write() -> str:
        method, trainer = next(iter(train.trainers.items()))
        save_twist(trainer.twist, part, target=train.target)
        return f"{method}-{trainer.done}-updates"

    try:
        name = train.live.read(write)
        sha = RunSpec(problem="rainy-week", method="saved", twist=part).twist_sha256
        place = folder / f"{name}-{sha[:8]}"
        return place if place.exists() else part.replace(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _state_of(shown: Shown, changes: Mapping[str, Any]) -> WorkbenchState:
    if isinstance(shown, WorkbenchState):
        if changes:
            raise ValueError(f"A state is complete: leave out {', '.join(changes)}.")
        return shown
    if shown is None:
        shown = RunSettings().spec
    if not isinstance(shown, RunSpec):
        usual = {"method": "look-ahead", "num_particles": 64, "num_runs": 1}
        return WorkbenchState(spec=RunSpec(**{"problem": shown, **usual, **changes}))
    return WorkbenchState(spec=shown.with_(**changes))


def _register(functions: Mapping[str, Callable[..., Any]] | Sequence[Any]) -> None:
    if isinstance(functions, Mapping):
        for name, function in functions.items():
            register_function(function, name=name)
        return
    for function in as_list("functions", functions, at_least=0):
        register_function(function)
