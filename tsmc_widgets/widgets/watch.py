"""The page on which one SMC run follows a few controls, and the presets that it shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import (
    AllParticlesDeadError,
    UnknownTokenError,
    check_kind,
    check_one_of,
    shortened,
)
from tsmc_widgets.experiments.code import code_of
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.models.loading import load_language_model
from tsmc_widgets.models.protocol import LanguageModel, check_model
from tsmc_widgets.smc.replay import ReplaySession
from tsmc_widgets.targets.classifier import cached_classifier
from tsmc_widgets.targets.description import parse_potential
from tsmc_widgets.targets.target import Target
from tsmc_widgets.widgets.controls import (
    PROMPTS,
    REVIEW,
    STAR_NAMES,
    STORY,
    Rail,
    SettingsBox,
    classed,
    close_whole,
    cockpit,
    dress,
    ess_slider,
    menu,
    particles,
    proposal,
    scheme,
    seed_field,
    show_only,
    slider,
    split_words,
    text,
)
from tsmc_widgets.widgets.front_end import Part, write_page
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.record import Recorder
from tsmc_widgets.widgets.run_page import RunPage, explain_dead
from tsmc_widgets.widgets.session import Progress, no_progress_bars

HOSTILITY = ("any", "threshold", "tempered")
TWISTS = ("none", "look-ahead", "reversed")
REVERSED = -0.25
"""Power of the look-ahead twist that is wrong on purpose."""
PROPOSALS = ("base", "twist-induced")
NEXT_TOKENS = 8
"""Likeliest next tokens recorded for the view's inspector."""


@dataclass(frozen=True, slots=True)
class Judges:
    """The classifiers behind the controls: names, folders or objects; None has no control."""

    stars: Any = "storybook/stars"
    hostility: Any = "storybook/hostility"

    def loaded(self) -> Judges:
        """The same with the classifiers themselves in place of their names."""
        judges = (self.stars, self.hostility)
        return Judges(*(None if judge is None else cached_classifier(judge) for judge in judges))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run, in the words of the controls.

    Attributes:
        prompt: s_0.
        contains: words or phrases with commas between them; the text must have each.
        avoids: words or phrases with commas between them; the text may have none.
        stars: 1 to 5 for reviews of that many stars; 0 for any.
        star_beta: power of the probability of that class.
        hostility: "any", "threshold" (score at least ``hostility_at_least``) or "tempered" (exp of
            ``hostility_beta`` times the score).
        hostility_at_least: eta.
        hostility_beta: beta of the tempered score; below zero asks for calm texts.
        num_steps: T.
        eos: "absorb" for texts that may end before step T, "ignore" for exactly T tokens.
        num_particles: K.
        twist: "none", "look-ahead", or "reversed", which is wrong on purpose.
        proposal: "base" or "twist-induced".
        resampler: scheme.
        ess_threshold: fraction of K; 0 never resamples.
        seed: of the noise and of a look-ahead twist.
    """

    prompt: str = "I bought this"
    contains: str = ""
    avoids: str = ""
    stars: int = 5
    star_beta: float = 2.0
    hostility: str = "any"
    hostility_at_least: float = 0.0
    hostility_beta: float = 1.0
    num_steps: int = 20
    eos: str = "absorb"
    num_particles: int = 64
    twist: str = "look-ahead"
    proposal: str = "base"
    resampler: str = "systematic"
    ess_threshold: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the choices that nothing below would check."""
        check_one_of("stars", self.stars, range(6))
        check_one_of("hostility", self.hostility, HOSTILITY)
        check_one_of("twist", self.twist, TWISTS)
        check_one_of("proposal", self.proposal, PROPOSALS)

    @property
    def spec(self) -> RunSpec:
        """The run, on the model and with the classifiers that ship."""
        twist = self.twist != "none"
        return RunSpec(
            problem={
                "name": "my own",
                "model": "storybook",
                "prompt": self.prompt,
                "num_steps": self.num_steps,
                "potential": self.factors(Judges()),
                "eos": self.eos,
            },
            method="look-ahead" if twist else "none",
            twist_power=REVERSED if self.twist == "reversed" else 1.0,
            proposal="" if not twist else "base" if self.proposal == "base" else "twist",
            resampler=self.resampler,
            ess_threshold=self.ess_threshold,
            num_particles=self.num_particles,
            num_runs=1,
            seed=self.seed,
        )

    def factors(self, judges: Judges) -> list[dict[str, Any]]:
        """Descriptions of the factors of phi; those of classifiers that are not there left out."""
        return list(self._factors(judges)) or [{"kind": "Constant"}]

    def _factors(self, judges: Judges) -> Iterator[dict[str, Any]]:
        for word in split_words(self.contains):
            yield {"kind": "ContainsWord", "args": [word]}
        avoided = split_words(self.avoids)
        if avoided:
            yield {"kind": "AvoidsWord", "args": avoided}
        if self.stars and self.star_beta and judges.stars is not None:
            yield _class_of(judges.stars, self.stars, STAR_NAMES[self.stars - 1], self.star_beta)
        judge, beta = judges.hostility, self.hostility_beta
        if judge is None:
            return
        if self.hostility == "threshold":
            yield {"kind": "RewardThreshold", "reward": judge, "at_least": self.hostility_at_least}
        elif self.hostility == "tempered" and beta > 0:
            yield {"kind": "TemperedReward", "reward": judge, "beta": beta}
        elif self.hostility == "tempered" and beta < 0:
            yield _class_of(judge, "low", "not hostile", -beta)

    def target(self, lm: LanguageModel, judges: Judges) -> Target:
        """The target on this model; words that it cannot write are refused by name."""
        for word in split_words(self.contains):
            try:
                lm.encode(word)
            except UnknownTokenError as error:
                short = shortened(word, 40)
                raise UnknownTokenError(f"No text can contain “{short}”: {error}") from error
        eos = "ignore" if lm.eos_token_id is None else self.eos
        potential = parse_potential(self.factors(judges))
        return Target(lm, potential, prompt=self.prompt, num_steps=self.num_steps, eos=eos)


def _class_of(judge: Any, label: int | str, name: str, beta: float) -> dict[str, Any]:
    """A class by its name where the classifier ships, else by what any such classifier takes."""
    label = name if isinstance(judge, str) else label
    part = {"kind": "ClassProbability", "model": judge, "label": label}
    return part if beta == 1 else {**part, "beta": beta}


NOTHING_ASKED = {"contains": "", "avoids": "", "stars": 0, "hostility": "any", "num_particles": 64}
EXAMPLES: dict[str, dict[str, Any]] = {
    "five-star reviews": {"prompt": REVIEW, "stars": 5, "star_beta": 8.0},
    "one star, nothing broken": {
        "prompt": REVIEW, "stars": 1, "star_beta": 5.0, "avoids": "broke, broken"
    },
    "stories with a castle": {"prompt": STORY, "contains": "castle"},
    "hostile stories (rare)": {
        "prompt": STORY, "hostility": "threshold", "hostility_at_least": 0.0, "num_particles": 256
    },
}  # fmt: skip
"""What the menu of examples asks for, beside ``NOTHING_ASKED``; the sampler stays as it is."""


class Controls(SettingsBox):
    """Controls whose values are a ``RunSettings``.

    Args:
        settings: what they show at first.
        judges: potentials without a classifier get no control.
        changed: called with the new settings after each change.
    """

    def __init__(
        self, settings: RunSettings, judges: Judges, changed: Callable[[RunSettings], None]
    ) -> None:
        fields = _fields(settings)
        stars = ("stars", "star_beta") if judges.stars is not None else ()
        hostility = ("hostility", "hostility_at_least", "hostility_beta")
        hostility = hostility if judges.hostility is not None else ()
        # It says "my own" once a control was moved away from an example.
        self.example = menu(
            "example",
            "Sets the prompt and the potential",
            find_example(settings),
            [("my own", ""), *((name, name) for name in EXAMPLES)],
        )
        self.example.layout.display = None if stars and hostility else "none"
        names = {
            "size": ("num_particles", "seed"),
            "steps": ("num_steps",),
            "prompt": ("prompt",),
            "phi": ("contains", "avoids", *stars, *hostility),
            "twist": ("twist",),
            "proposal": ("proposal",),
            "rule": ("ess_threshold", "resampler"),
        }
        folds = {name: [fields[each] for each in own] for name, own in names.items()}
        self.sentence = Rail(folds)
        placed = {each for own in names.values() for each in own}
        close_whole(*(field for name, field in fields.items() if name not in placed))
        groups = [self.example, self.sentence]
        super().__init__(settings, fields, groups, changed)
        self.example.observe(self._take_example, "value")

    def _take_example(self, change: Any) -> None:
        name = change["new"]
        if name and name != find_example(self.settings):
            self.set(**NOTHING_ASKED | EXAMPLES[name])

    def _show_what_matters(self) -> None:
        now = self.settings
        shown = {
            "star_beta": now.stars != 0,
            "hostility_at_least": now.hostility == "threshold",
            "hostility_beta": now.hostility == "tempered",
        }
        show_only(self.fields, shown)
        self.fields["proposal"].disabled = now.twist == "none"
        self.sentence.say(now.spec)
        self.example.value = find_example(now)


def find_example(settings: RunSettings) -> str:
    """The example that these settings show; empty for none."""
    for name, example in EXAMPLES.items():
        asked = NOTHING_ASKED | example
        # How many particles look at it is no part of what is asked.
        asked.pop("num_particles")
        if all(getattr(settings, field) == value for field, value in asked.items()):
            return name
    return ""


def _fields(now: RunSettings) -> dict[str, Any]:
    stars = [("any", 0), *((name, n) for n, name in enumerate(STAR_NAMES, 1))]
    hostility = [("any", "any"), ("score at least η", "threshold"), ("tempered by β", "tempered")]
    twists = [
        ("none: ψ = 1", "none"),
        ("look-ahead", "look-ahead"),
        ("look-ahead reversed (bad)", "reversed"),
    ]
    prompt, steps = {"value": now.prompt, "options": PROMPTS}, {"min": 1, "max": 64}
    hints = {
        "prompt": "The text that every particle starts from",
        "stars": "Reviews that a classifier gives this many stars",
        "star_beta": "p(stars | text) to this power: 0 asks nothing, 10 insists",
        "hostility": "What a classifier's hostility score must be",
        "eta": "phi is 1 at this score and above, else 0",
        "beta": "phi = exp(beta score) above zero; below it phi = p(calm)^-beta",
        "twist": "None waits for phi at the last step; look-ahead asks it about the text so far",
        "ess": "Resample when the effective sample size is below this share of K; 0 never",
    }
    eta, beta = now.hostility_at_least, now.hostility_beta
    return {
        "prompt": dress(ipw.Combobox, "prompt", hints["prompt"], **prompt, continuous_update=False),
        "num_steps": dress(
            ipw.IntSlider, "tokens T", "Tokens to write", value=now.num_steps, **steps
        ),
        "num_particles": particles(now.num_particles),
        "seed": seed_field(now.seed),
        "contains": text("contains", "Each of these words must occur", now.contains, "word, word"),
        "avoids": text("avoids", "None of these words may occur", now.avoids, "word, word"),
        "stars": menu("stars", hints["stars"], now.stars, stars),
        "star_beta": slider("stars β", hints["star_beta"], now.star_beta, 0.0, 10.0, 0.5, ".1f"),
        "hostility": menu("hostility", hints["hostility"], now.hostility, hostility),
        "hostility_at_least": slider("score ≥ η", hints["eta"], eta, -8.0, 8.0, 0.5, ".1f"),
        "hostility_beta": slider("hostility β", hints["beta"], beta, -5.0, 5.0, 0.25),
        "twist": menu("twist ψ", hints["twist"], now.twist, twists),
        "proposal": proposal(now.proposal, "twist-induced"),
        "resampler": scheme("resampling", now.resampler),
        "ess_threshold": ess_slider(hints["ess"], now.ess_threshold),
    }


_CASTLE = NOTHING_ASKED | {
    "prompt": STORY, "contains": "castle", "num_steps": 20, "seed": 0,
    "resampler": "systematic", "ess_threshold": 0.5,
}  # fmt: skip
_ONE_STAR = NOTHING_ASKED | {
    "prompt": REVIEW, "stars": 1, "star_beta": 10.0, "num_steps": 24, "seed": 0,
    "twist": "look-ahead", "proposal": "base", "resampler": "systematic",
}  # fmt: skip
_RAIN = RunSpec(problem="rainy-week", num_particles=64, num_runs=1, rule="ess")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One lesson: a question to answer before the run is played, and the run that answers.

    Attributes:
        values: what the controls are set to, fields of ``RunSettings``; None where these cannot.
        run: the run that it shows where it has no values.
        intro: what is run, in a sentence or two.
        question: what a person is to predict.
        choices: the answers, and from which value on each is right; the first has no such value.
        measure: what is asked for: "ess"; "ancestors", first tokens with descendants; "top", the
            largest weight.
        step: that the run is played to.
        since: the step whose measure is taken off, at which the play begins; 0 for none.
        spot: the part of the view to look at: "ess", "loss", "ancestors", "population", "texts".
        text: what the answer shows.
    """

    values: dict[str, Any] | None = None
    run: RunSpec | None = None
    intro: str
    question: str
    choices: tuple[tuple[str, float | int | None], ...]
    measure: str = "ess"
    step: int
    since: int = 0
    spot: str = "ess"
    text: str

    @property
    def spec(self) -> RunSpec:
        """The run that it shows."""
        return self.run or RunSettings(**self.values or {}).spec

    def traits(self, name: str, number: int, of: int) -> dict[str, Any]:
        """What the view is told of it."""
        asked = {each.name: getattr(self, each.name) for each in fields(self)}
        del asked["values"], asked["run"]
        return {**asked, "name": name, "number": number, "of": of}


_MOVES = (("It falls", None), ("It stays about the same", -3), ("It rises", 3))
_LEFT = (("at most 6", None), ("7 to 32", 7), ("more than 32", 33))
_WORTH = (("fewer than 8", None), ("8 to 60", 8), ("more than 60", 60))

PRESETS: dict[str, Preset] = {
    "Three texts": Preset(
        run=_RAIN.with_(method="none", num_particles=3, rule="never", seed=1),
        intro="Three texts are drawn from a model of the weather; φ asks for two days of rain of "
        "five. Each text weighs as much as φ gives it: importance sampling.",
        question="Which share of the whole weight has the heaviest of the three at the end?",
        choices=(("a third: all are alike", None), ("about a half", 0.4), ("over two thirds", 2/3)),
        measure="top", step=5, spot="texts",
        text="Three rows, three weights: with two days of rain φ = 1, with one e⁻², with none e⁻⁴, "
        "each divided by their sum. Ẑ is the mean of the three values of φ.",
    ),
    "Late evidence": Preset(
        values=_CASTLE | {"twist": "none", "proposal": "base"},
        intro="Now 64 texts. Each must have a castle, and nothing says so before the last step.",
        question="How many of the 64 is the population worth (ESS) after the last step?",
        choices=_WORTH, step=20,
        text="The ESS stays at 64, nothing is resampled, and then all weight falls on the few "
        "texts that happen to have a castle.",
    ),
    "Why SIS fails": Preset(
        values=_ONE_STAR | {"ess_threshold": 0.0},
        intro="One-star reviews. A look-ahead twist weighs texts while they are written, and "
        "nothing is resampled: sequential importance sampling.",
        question="Does the ESS rise or fall from step 4 to step 12?",
        choices=_MOVES, since=4, step=12,
        text="Weights multiply from step to step: most of the 64 particles carry no weight long "
        "before the end, and are computed for nothing.",
    ),
    "Resampling": Preset(
        values=_ONE_STAR | {"ess_threshold": 0.5},
        intro="The same, but where the ESS falls below 32, 64 particles are drawn again in "
        "proportion to their weights: heavy ones are copied, light ones end.",
        question="At step 9 the ESS is below 32, so step 10 begins by resampling. What does it do?",
        choices=_MOVES, since=9, step=10, spot="population",
        text="Copies of heavy texts stand where light ones stood, and all weights are equal again. "
        "Ribbons lead from each text to its copies.",
    ),
    "What resampling costs": Preset(
        values=_ONE_STAR | {"ess_threshold": 1.0, "resampler": "multinomial"},
        intro="The same once more, resampled at every step.",
        question="How many of the 64 first tokens have descendants at the end?",
        choices=_LEFT, measure="ancestors", step=24, spot="ancestors",
        text="Resampling at every step keeps the ESS high, but families die out by chance. Texts "
        "that share an ancestor share its luck: they are not 64 independent ones.",
    ),
    "A full ESS, and no gain": Preset(
        values=_CASTLE | {"twist": "look-ahead", "proposal": "twist-induced"},
        intro="The castle again, with a twist that guesses who may still reach one, and tokens "
        "drawn as it likes them. The ESS ends at 64 of 64.",
        question="Of how many first tokens are these 64 texts the descendants?",
        choices=_LEFT, measure="ancestors", step=20, spot="ancestors",
        text="The ESS is full only since resampling has just made the weights equal, and log Ẑ "
        "varies from run to run as much as without a twist. Look at the ancestors too.",
    ),
    "A bad twist": Preset(
        values=_ONE_STAR | {"ess_threshold": 0.5, "twist": "reversed"},
        intro="One-star reviews with a twist that prefers what φ dislikes. At the last step φ "
        "itself takes the twist's place.",
        question="What does the ESS do at the last step?",
        choices=_MOVES, since=23, step=24,
        text="Resampling has copied the wrong families, and when φ enters nearly all weight is "
        "gone. The mean of Ẑ over many runs would still be right; one run is useless.",
    ),
    "The best twist weighs": Preset(
        run=_RAIN.with_(method="optimal", proposal="base"),
        intro="The weather is small enough to know the optimal twist ψ*: how likely φ is from each "
        "text so far. Tokens are still drawn from p₀.",
        question="How many of the 64 is the population worth after step 4?",
        choices=_WORTH, step=4, spot="loss",
        text="The twist is perfect, and still weight is lost: the tokens drawn from p₀ are to "
        "blame, which do not know where the rain is needed.",
    ),
    "The best twist draws": Preset(
        run=_RAIN.with_(method="optimal", proposal="twist"),
        intro="The same optimal twist, now with tokens drawn in proportion to p₀ψ*.",
        question="And how many is the population worth after step 5, the last?",
        choices=_WORTH, step=5,
        text="All 64: no step loses weight, each text is an exact sample of σ, and Ẑ is Z in every "
        "single run. This is what learning a twist is after.",
    ),
    "A good twist": Preset(
        run=RunSpec(
            problem="one-star-review", method="shipped", proposal="twist", rule="ess",
            num_particles=64, num_runs=1,
        ),
        intro="On a language model ψ* is out of reach. This twist was learned for one-star "
        "reviews, and draws the tokens too.",
        question="How many of the 64 first tokens have descendants at the end?",
        choices=_LEFT, measure="ancestors", step=10, spot="ancestors",
        text="The weight comes from most of the first tokens, and log Ẑ varies from run to run by "
        "a third of what it does without a twist. Set ψ to none and compare.",
    ),
}  # fmt: skip
"""In their order."""


def write_lessons(path: str | Path, presets: Mapping[str, Preset] = PRESETS) -> Path:
    """Run the lessons, and write one page that asks them on any machine, without kernel.

    Args:
        path: the file; an existing one is replaced.
        presets: the lessons, by name, in their order.

    Returns:
        The path.
    """
    recorder, runs = Recorder(), {}
    for number, (name, preset) in enumerate(presets.items()):
        session = start_spec(preset.spec, top_k=NEXT_TOKENS)
        session.run()
        target = session.target.potential.describe()
        runs[number] = recorder.encode(session.trace, run=0, target=target)
        runs[number]["lesson"] = preset.traits(name, number + 1, len(presets))
    part = Part(ParticleView._esm, ParticleView._css, runs, {"course": True})
    return write_page(path, title="Lessons in sequential Monte Carlo", parts=[part], run=0)


class PresetBar(ipw.VBox):
    """A button for each lesson; the view asks its question.

    Args:
        view: that shows the run.
        choose: called with the lesson that is chosen.
        presets: the lessons, by name.
    """

    def __init__(
        self,
        view: ParticleView,
        choose: Callable[[Preset], None],
        presets: Mapping[str, Preset] = PRESETS,
    ) -> None:
        self.view = view
        self.buttons: dict[str, ipw.Button] = {}
        self.lessons = dict(presets)
        self._specs = {name: preset.spec for name, preset in presets.items()}
        layout = {"width": "auto", "margin": "1px 4px 1px 2px"}
        for number, (name, preset) in enumerate(presets.items(), 1):
            button = ipw.Button(description=f"{number} {name}", tooltip=preset.intro, layout=layout)
            button.on_click(lambda _, preset=preset: choose(preset))
            self.buttons[name] = button
        label = ipw.Label("Lessons", style={"font_weight": "600"})
        row = ipw.Box([label, *self.buttons.values()], layout={"flex_flow": "row wrap"})
        super().__init__([row], layout={"width": "100%"})
        self.add_class("tw-lessons")
        view.observe(lambda change: self._go_on(), "lessons_done")

    def show(self, spec: RunSpec) -> None:
        """Mark the lesson that shows this run, where there is one; nothing is asked of another."""
        found = [name for name, own in self._specs.items() if own == spec]
        for name, button in self.buttons.items():
            button.button_style = "info" if name in found else ""
        if not found:
            self.view.lesson = {}

    def ask(self, spec: RunSpec) -> None:
        """Let the view ask the question of the lesson that shows this run, which has begun."""
        for number, (name, preset) in enumerate(self.lessons.items(), 1):
            # A late frame of a run that was left asks nothing.
            if self._specs[name] == spec and self.buttons[name].button_style:
                self.view.lesson = preset.traits(name, number, len(self.lessons))

    def _go_on(self) -> None:
        """Choose the lesson after the one on show."""
        number = self.view.lesson.get("number")
        if number is not None and number < len(self.lessons):
            [*self.buttons.values()][number].click()


class WatchSMC(RunPage):
    """Watch SMC at work: move a control and the run starts again; pause, step, rewind, look.

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
        start = RunSettings(**settings)
        _ = start.spec  # Refused before there are widgets to be left behind.
        # Else no spec says which model and classifiers these are.
        self._ships = isinstance(lm, str) and lm == "storybook" and judges is None
        with no_progress_bars():
            self.lm = load_language_model(lm) if isinstance(lm, str) else lm
            check_model(self.lm)
            judges = Judges() if judges is None else judges
            check_kind("judges", judges, Judges, "Judges(...)")
            self.judges = judges.loaded()
        super().__init__()
        self.controls = Controls(start, self.judges, self.start)
        own = {name: preset for name, preset in PRESETS.items() if preset.values is not None}
        self.presets = PresetBar(self.view, lambda each: self.controls.set(**each.values), own)
        judged = self.judges.stars is not None and self.judges.hostility is not None
        self.presets.layout.display = None if judged else "none"
        self.bench.add_tools([self.present], [])
        self.children = [self.presets, cockpit(classed(self.controls, "tw-rail"), self.bench)]
        self.start(self.controls.settings, rest=0.0)

    @property
    def settings(self) -> RunSettings:
        """What the controls say."""
        return self.controls.settings

    def set(self, **settings: Any) -> None:
        """Move controls from code: ``watch.set(star_beta=4.0, num_particles=128)``."""
        self.controls.set(**settings)

    def start(self, settings: RunSettings, rest: float | int | None = None) -> None:
        """Start this run in place of the one in progress."""
        spec = settings.spec
        self.presets.show(spec)
        if self._ships:
            code = code_of(spec, top_k=NEXT_TOKENS)
            self.view.share = {"code": code, "spec": spec.to_json()}

        def make() -> ReplaySession:
            target = settings.target(self.lm, self.judges)
            return start_spec(spec, target=target, top_k=NEXT_TOKENS, dead_runs="raise")

        self.launch(spec, make, rest=rest)

    def explain(self, progress: Progress) -> str:
        """What stopped the run, and for dead particles what may help."""
        if isinstance(progress.error, AllParticlesDeadError) and progress.trace is not None:
            return explain_dead(progress.trace, self._asked)
        return super().explain(progress)
