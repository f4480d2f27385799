"""The page on which inference is seen, touched and questioned."""

from __future__ import annotations

import html
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import AllParticlesDeadError, message_of
from tsmc_widgets.experiments.code import code_of
from tsmc_widgets.experiments.execute import TwistCache, start_spec
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.models.loading import load_language_model
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.replay import Recording, ReplaySession
from tsmc_widgets.smc.session import SMCSession
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.description import TABLE
from tsmc_widgets.targets.functions import register_function
from tsmc_widgets.twists.storage import save_twist
from tsmc_widgets.widgets.code_button import CodeButton
from tsmc_widgets.widgets.controls import NOTHING_ASKED, REVIEW, STORY, Controls
from tsmc_widgets.widgets.formula import formula, words_of
from tsmc_widgets.widgets.live_page import LivePage, no_progress_bars
from tsmc_widgets.widgets.problem_panel import ProblemPanel
from tsmc_widgets.widgets.run_panels import RunPanels
from tsmc_widgets.widgets.sampler_panel import SamplerPanel
from tsmc_widgets.widgets.session import Progress
from tsmc_widgets.widgets.settings import (
    NEXT_TOKENS,
    Judges,
    RunSettings,
    make_session,
    make_target,
    spec_of,
)
from tsmc_widgets.widgets.train_page import TrainSession
from tsmc_widgets.widgets.workbench_state import (
    WorkbenchState,
    explain_dead,
    missing_functions,
    normal,
    replay_words,
)


def arrange(problem: ProblemPanel, sampler: SamplerPanel) -> ipw.Box:
    """Four groups of controls, in as many columns as fit."""
    what = ("problem", "model", "prompt", "num_steps", "eos")
    how = ("twist", "folder", "twist_power", "proposal", "rule", "ess_threshold", "resampler")
    size = ("num_particles", "num_runs", "seed")
    groups = [
        _group("problem", "Problem", [*(problem.fields[name] for name in what), problem.note]),
        _group("potential", "Potential φ: which texts", [problem.editor]),
        _group("sampler", "How to sample", [*(sampler.fields[name] for name in how), sampler.note]),
        _group("size", "How much", [sampler.fields[name] for name in size]),
    ]
    box = ipw.Box(groups, layout={"width": "100%"})
    box.add_class("tw-panels")
    return box


def _group(name: str, title: str, children: list[ipw.Widget]) -> ipw.VBox:
    heading = ipw.Label(title)
    heading.add_class("tw-title")
    box = ipw.VBox([heading, *children])
    box.add_class("tw-group")
    box.add_class(f"tw-group-{name}")
    return box


def formula_box(formula: ipw.HTML, replayed: ipw.HTML) -> ipw.VBox:
    """Log phi, and what was done when it last changed."""
    replayed.add_class("tw-replay")
    box = ipw.VBox([formula, replayed], layout={"width": "100%"})
    box.add_class("tw-formula")
    return box


def replay_choice(on: bool) -> ipw.Checkbox:
    """Whether the recorded run may be weighed anew."""
    tooltip = (
        "After a change of φ alone, weigh the recorded run anew where that gives the very trace of "
        "a fresh run on the same noise"
    )
    return ipw.Checkbox(
        on, description="re-weigh where valid", indent=False, tooltip=tooltip,
        layout={"width": "auto"},
    )  # fmt: skip


def file_row(act: Callable[[str, str], str]) -> tuple[ipw.Text, ipw.Box]:
    """A path with buttons that save the page there, or load it from there.

    Args:
        act: of "save" or "load" and the path; gives what to say, and raises where it can not.
    """
    path = ipw.Text(value="workbench.json", layout={"width": "170px"})
    path.tooltip = "A file beside the notebook"
    said = ipw.HTML(layout={"margin": "0"})
    said.add_class("tw-note")
    buttons = [
        ipw.Button(description=name, tooltip=tooltip, layout={"width": "auto"})
        for name, tooltip in (
            ("Save", "Write all that is on the page to this file"),
            ("Load", "Show what was saved in this file"),
        )
    ]

    def press(button: ipw.Button) -> None:
        try:
            text = act(button.description.lower(), path.value.strip())
        except Exception as error:  # noqa: BLE001 - said beside the button
            text = message_of(error)
        said.value = f'<span role="status">{html.escape(text)}</span>'

    for button in buttons:
        button.on_click(press)
    row = ipw.HBox([path, *buttons, said])
    row.add_class("tw-file")
    return path, row


_CASTLE = NOTHING_ASKED | {
    "prompt": STORY, "contains": "castle", "num_steps": 20, "seed": 0,
    "resampler": "systematic", "ess_threshold": 0.5,
}  # fmt: skip
_ONE_STAR = NOTHING_ASKED | {
    "prompt": REVIEW, "stars": 1, "star_beta": 10.0, "num_steps": 24, "seed": 0,
    "twist": "look-ahead", "proposal": "base", "resampler": "systematic",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preset:
    """One lesson.

    Attributes:
        settings: what the controls are set to.
        text: what there is to see, in a sentence or two.
    """

    settings: dict[str, Any]
    text: str


PRESETS: dict[str, Preset] = {
    "Late evidence": Preset(
        _CASTLE | {"twist": "none", "proposal": "base"},
        "Every text must have a castle, and nothing says so before the last step: the ESS stays "
        "at 64, nothing is resampled, and then all weight falls on the few texts that happen to "
        "have one.",
    ),
    "A good twist": Preset(
        _CASTLE | {"twist": "look-ahead", "proposal": "twist-induced"},
        "The same texts with a twist that knows on the way who may still reach a castle: evidence "
        "arrives early, resampling copies the hopeful, and nearly all 64 texts count at the end.",
    ),
    "Why SIS fails": Preset(
        _ONE_STAR | {"ess_threshold": 0.0},
        "Weights multiply from step to step and nothing is resampled: most of the 64 particles "
        "carry no weight long before the end, and are computed for nothing.",
    ),
    "What resampling costs": Preset(
        _ONE_STAR | {"ess_threshold": 1.0, "resampler": "multinomial"},
        "Resampling at every step keeps the ESS high, but families die out by chance: look at the "
        "surviving ancestors, and follow the pale lines that end.",
    ),
    "A bad twist": Preset(
        _ONE_STAR | {"ess_threshold": 0.5, "twist": "reversed"},
        "This twist prefers what φ dislikes: resampling copies the wrong families, and when φ "
        "itself is weighed in at the last step nearly all weight is gone. The mean of Ẑ over many "
        "runs would still be right; one run is useless.",
    ),
}


class PresetBar(ipw.VBox):
    """A button for each lesson, and what it shows.

    Args:
        take: sets the controls.
    """

    def __init__(self, take: Callable[[dict[str, Any]], None]) -> None:
        self.text = ipw.HTML(layout={"margin": "0", "display": "none"})
        self.buttons = {name: _button(name, preset) for name, preset in PRESETS.items()}
        self._take = take
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.choose(name))
        label = ipw.Label("Lessons", style={"font_weight": "600"})
        row = ipw.Box([label, *self.buttons.values()], layout={"flex_flow": "row wrap"})
        super().__init__([row, self.text], layout={"padding": "4px 0 0 14px", "width": "100%"})

    def choose(self, name: str) -> None:
        """Show a lesson."""
        self._take(PRESETS[name].settings)
        self.show(name)

    def show(self, name: str) -> None:
        """Mark a lesson as the one on show; none where the name is empty."""
        for each, button in self.buttons.items():
            button.button_style = "info" if each == name else ""
        self.text.value = f"<p>{html.escape(PRESETS[name].text)}</p>" if name else ""
        self.text.layout.display = None if name else "none"


def find_preset(settings: Any) -> str:
    """The lesson that these settings show; empty for none."""
    for name, preset in PRESETS.items():
        if all(getattr(settings, field) == value for field, value in preset.settings.items()):
            return name
    return ""


def _button(name: str, preset: Preset) -> ipw.Button:
    layout = {"width": "auto", "margin": "1px 4px 1px 2px"}
    return ipw.Button(description=name, tooltip=preset.text, layout=layout)


Shown = RunSpec | WorkbenchState | str | Mapping[str, Any] | None


class Workbench(LivePage):
    """Compose a potential, choose how to sample, and watch: every change is run or re-weighed.

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
        _register(functions)
        state = _state_of(shown, changes)
        super().__init__(panels=RunPanels())
        self.add_class("tw-workbench")
        self.train, self.folder = train, Path(folder)
        self._spec = state.spec
        self._twists = TwistCache()
        self._recording: Recording | None = None
        self._before: dict[str, Any] | None = None
        self._then: RunSpec | None = None
        self._lessons = {name: spec_of(RunSettings(**p.settings)) for name, p in PRESETS.items()}
        self.presets = PresetBar(lambda settings: self.show(spec_of(RunSettings(**settings))))
        self.problem = ProblemPanel(state.spec.problem, self._moved)
        self.sampler = SamplerPanel(
            state.spec,
            self.problem.described,
            self._moved,
            trained=None if train is None else self._trained_label,
        )
        self.formula, self.refusal, self.replayed = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.replay = replay_choice(state.replay)
        self.code_button = CodeButton()
        self.file, file_widgets = file_row(self._file)
        self.bench.add_tools([self.code_button, file_widgets, self.replay])
        self.bench.row.add_class("tw-bar")
        said = formula_box(self.formula, self.replayed)
        above = [self.presets, arrange(self.problem, self.sampler), said, self.refusal]
        self.children = [*above, self.bench]
        self.refusal.add_class("tw-wrong-page")
        self._restore(state, rest=0.0)

    @property
    def spec(self) -> RunSpec:
        """The run on screen."""
        return self._spec

    @property
    def state(self) -> WorkbenchState:
        """All that is on screen: the run, the one pinned beside it, which of R is shown."""
        pinned = None if self.bench.pinned is None else self.bench.pinned.settings
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

        Raises:
            ValueError: the file is none of a workbench, or names a Python function that is not
                registered here: a file is never trusted to say what is run.
        """
        state = WorkbenchState.read(path)
        _register(options.pop("functions", ()))
        missing = missing_functions(state)
        if missing:
            raise ValueError(missing)
        return cls(state, **options)

    def explain(self, progress: Progress) -> str:
        """What stopped the run, or in which runs nothing is left."""
        if progress.state == "done":
            return explain_dead(progress.trace, self._asked)
        return super().explain(progress)

    def shown(self, progress: Progress, exact_log_z: float | None) -> None:
        """Say whether the run was weighed anew; keep it for the next."""
        session = self.session
        if not isinstance(session, ReplaySession) or progress.trace is None:
            return
        now = words_of(self._asked)
        done, why = replay_words(
            reweighed=bool(session.reweighed),
            why_not=session.why_not,
            before=self._before,
            now=now,
        )
        self.replayed.value = f"<b>{html.escape(done)}</b> {html.escape(why)}" if done else ""
        self.replayed.layout.display = None if done else "none"
        config = session.config
        self.sampler.show_what_matters(
            only_proposes=config.twist is None
            and getattr(config.proposal, "twist", None) is not None
        )
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
        self.problem.set(spec.problem)
        self.sampler.set(spec, self.problem.described)
        self._spec = spec
        self._describe()

    def _moved(self) -> None:
        """A control was moved: read them all, and run."""
        try:
            spec = self._read()
        except Exception as error:  # noqa: BLE001 - said on the page
            self._refuse(error)
            return
        self._begin(spec)

    def _read(self) -> RunSpec:
        if self.sampler.wants_trained:
            self._take_trained()
        if self.problem.editor.error:
            raise ValueError(self.problem.editor.error)
        problem = self.problem.problem
        name = problem if isinstance(problem, str) else problem["name"]
        return normal(self._spec.with_(problem=problem, **self.sampler.values(name)))

    def _begin(self, spec: RunSpec, rest: float | None = None) -> None:
        self._spec = spec
        self._describe()

        def make() -> ReplaySession:
            recording = self._recording if self.replay.value else None
            how = {"top_k": NEXT_TOKENS, "twists": self._twists, "recording": recording}
            if _is_table(spec):
                return start_spec(spec, **how)
            with no_progress_bars():
                return start_spec(spec, **how)

        self.launch(spec, make, rest=rest)

    def _describe(self) -> None:
        """Formula, lesson and code of the spec; whatever was wrong before is gone."""
        self.refusal.value, self.refusal.layout.display = "", "none"
        self.sampler.fit(self.problem.described)
        self.formula.value = f"<p>{html.escape(formula(self._spec.problem))}</p>"
        lessons = [name for name, spec in self._lessons.items() if spec == self._spec]
        self.presets.show(lessons[0] if lessons else "")
        try:
            self.code_button.text = self.code
        except Exception as error:  # noqa: BLE001 - the run itself will say what is wrong
            self.code_button.text = f"# {type(error).__name__}: {error}"

    def _refuse(self, error: Exception) -> None:
        text = html.escape(message_of(error))
        self.refusal.value = f'<span role="alert">{text}</span>'
        self.refusal.layout.display = None

    def _file(self, act: str, path: str) -> str:
        """Save or load by the buttons; gives what to say."""
        if act == "save":
            return f"saved to {self.save(path)}"
        state = WorkbenchState.read(path)
        missing = missing_functions(state)
        if missing:
            raise ValueError(missing)
        self.unpin()
        self._restore(state)
        return f"loaded from {path}"

    def _trained_label(self) -> str:
        trainers = self.train.trainers
        if not trainers:
            return "nothing yet"
        method, trainer = next(iter(trainers.items()))
        return f"{method}, {trainer.done} updates"

    def _take_trained(self) -> None:
        """Keep the twist of the training as it stands, and choose that."""
        folder = snapshot(self.train, self.folder)
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

    name = train.runner.read(write)
    sha = RunSpec(problem="rainy-week", method="saved", twist=part).twist_sha256
    place = folder / f"{name}-{sha[:8]}"
    if place.exists():
        for file in part.iterdir():
            file.unlink()
        part.rmdir()
        return place
    return part.replace(place)


def _is_table(spec: RunSpec) -> bool:
    problem = spec.problem
    return isinstance(problem, dict) and problem["model"].startswith(TABLE)


def _state_of(shown: Shown, changes: Mapping[str, Any]) -> WorkbenchState:
    if isinstance(shown, WorkbenchState):
        if changes:
            raise ValueError(f"A state is complete: leave out {', '.join(changes)}.")
        return shown
    if shown is None:
        shown = spec_of(RunSettings())
    if not isinstance(shown, RunSpec):
        usual = {"method": "look-ahead", "num_particles": 64, "num_runs": 1}
        return WorkbenchState(spec=RunSpec(**{"problem": shown, **usual, **changes}))
    return WorkbenchState(spec=shown.with_(**changes))


def _register(functions: Mapping[str, Callable[..., Any]] | Sequence[Any]) -> None:
    if isinstance(functions, Mapping):
        for name, function in functions.items():
            register_function(function, name=name)
        return
    for function in functions:
        register_function(function)


class WatchSMC(LivePage):
    """Watch SMC at work: move a control and the run starts anew; pause, step, rewind, look.

    Shown as the last line of a cell. The run is computed in a background thread, so the kernel
    stays free; ``session``, ``trace`` and ``target`` are at hand in the next cell. ``Workbench`` is
    its larger sibling.

    Args:
        lm: a language model, or a name that ``load_language_model`` takes.
        judges: the classifiers behind the controls of stars and hostility; those that ship, if
            None.
        **settings: where the controls start, see ``RunSettings``.
    """

    def __init__(
        self,
        lm: LanguageModel | str = "storybook",
        *,
        judges: Judges | None = None,
        **settings: Any,
    ) -> None:
        with no_progress_bars():
            self.lm = load_language_model(lm) if isinstance(lm, str) else lm
            self.judges = (Judges() if judges is None else judges).loaded()
        super().__init__()
        self.controls = Controls(RunSettings(**settings), self.judges, self.start)
        self.presets = PresetBar(self._take)
        judged = self.judges.stars is not None and self.judges.hostility is not None
        self.presets.layout.display = None if judged else "none"
        self.children = [self.presets, self.controls, self.bench]
        self.start(self.controls.settings, rest=0.0)

    @property
    def settings(self) -> RunSettings:
        """What the controls say."""
        return self.controls.settings

    def set(self, **settings: Any) -> None:
        """Move controls from code: ``watch.set(star_beta=4.0, num_particles=128)``."""
        self.controls.set(**settings)

    def start(self, settings: RunSettings, rest: float | int | None = None) -> None:
        """Start this run in place of the one that is on."""
        self.presets.show(find_preset(settings))

        def make() -> SMCSession:
            return make_session(settings, make_target(settings, self.lm, self.judges))

        self.launch(settings, make, rest=rest)

    def close(self) -> None:
        """End the run and take the widgets from the page."""
        self.controls.close()
        super().close()

    def explain(self, progress: Progress) -> str:
        """What stopped the run, and for dead particles what may help."""
        if isinstance(progress.error, AllParticlesDeadError) and progress.trace is not None:
            return explain_death(progress.trace, self.settings)
        return super().explain(progress)

    def _take(self, settings: dict[str, Any]) -> None:
        self.controls.set(**settings)


def explain_death(trace: SMCTrace, settings: RunSettings) -> str:
    """Why no particle has weight left, and which controls may help."""
    remedies = [
        "take more particles K",
        "ask for less: another prompt, fewer words, a lower η or β",
    ]
    if settings.twist == "none":
        remedies.insert(0, "set twist ψ to look-ahead, which hears φ before the end")
    elif settings.proposal == "base":
        remedies.insert(0, "set proposal q to twist-induced, which draws tokens that ψ likes")
    return (
        f"All {trace.num_particles} weights are zero at step {trace.steps_done}: "
        f"every text is one that φ rules out, and log Ẑ is −∞.\nTry to {'; or '.join(remedies)}."
    )
