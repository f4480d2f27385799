"""Named problems: the paper's experiments, their twins on the model that ships, toys, and JSON."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, Literal

import torch

from tsmc_widgets.errors import check_integer, check_one_of, listed, quoted
from tsmc_widgets.models.loading import load_language_model
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.models.tempered import Tempered
from tsmc_widgets.targets import toys
from tsmc_widgets.targets.classifier import (
    CachedClassifier,
    ClassConditional,
    ClassifierLike,
    ClassProbability,
    RewardThreshold,
    TemperedReward,
    cached_classifier,
)
from tsmc_widgets.targets.grammar import JSONSchema
from tsmc_widgets.targets.notation import code_value
from tsmc_widgets.targets.protocol import Potential
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.tokens import ContainsToken, Infilling

Maker = Callable[[CachedClassifier | None], Potential]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A target with a name, made where and when it is wanted.

    Attributes:
        name: in ``PROBLEMS``.
        summary: the problem in a line.
        teaches: what it is good for: the lesson of a toy, or the experiment of the paper.
        model: name of the base model: "storybook", "smollm2", a transformers name, or "table" for a
            toy.
        classifier: name of the classifier that judges texts; "" where phi needs none.
        prompt: s_0, or messages of a chat.
        num_steps: T.
        potential: makes phi, of the classifier or None.
        table: makes the toy's model; None for other models.
        eos: "ignore" or "absorb", as for ``Target``.
        form: recommended form of the twist, a name of ``twists.forms``; that of a toy is for its
            target once it is conditioned. "" is the usual one for the model's vocabulary.
        conditional: whether phi waits for an observation o, so that samples come with one.
        exact: whether ``tw.exact`` knows everything about it.
        twin: name of the problem that is the same experiment on the other model; "" for none.
        tempered: settings of ``Tempered`` for the model, by name; none leaves p0 as it is.
        stop: where texts end besides EOS, as for ``Target``.
        power: of p0, as for ``Target``.
        description: the JSON that it was made from; None for a named one.
    """

    name: str
    summary: str
    teaches: str
    model: str
    prompt: str | Sequence[Mapping[str, str]]
    num_steps: int
    potential: Maker = field(repr=False)
    classifier: str = ""
    table: Callable[[], LanguageModel] | None = field(default=None, repr=False)
    eos: Literal["ignore", "absorb"] = "ignore"
    form: str = ""
    conditional: bool = False
    exact: bool = False
    twin: str = ""
    tempered: Mapping[str, Any] = field(default_factory=dict)
    stop: str | Sequence[str] | None = None
    power: float | int = 1
    description: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check what a typing slip would break later."""
        check_integer("num_steps", self.num_steps)
        check_one_of("eos", self.eos, ("ignore", "absorb"))
        if not self.form:
            small = self.table is not None or self.model == "storybook"
            object.__setattr__(self, "form", "MLP head" if small else "tied head")

    @property
    def title(self) -> str:
        """The summary as a menu shows it."""
        return f"{self.summary[:1].upper()}{self.summary[1:]}"

    @property
    def group(self) -> str:
        """One of "toy", "paper" for what needs the paper's own models, or the model's name."""
        if self.table is not None:
            return "toy"
        return "paper" if self.name.startswith("paper/") else self.model

    def target(
        self,
        lm: LanguageModel | str | Path | None = None,
        *,
        classifier: ClassifierLike | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Target:
        """The target; models are loaded when this is called, once for each process.

        Args:
            lm: a model, name or folder in place of the problem's own, such as a local copy of it.
            classifier: an object, name or folder in place of the problem's own.
            device: where models that are loaded by name go; None is the CPU.
            dtype: of a base model that is loaded by name; None is the usual one.

        Raises:
            FileNotFoundError: a checkpoint is neither here nor can be fetched.
            ValueError: a classifier for a problem that has none.
        """
        if classifier is not None and not self.classifier:
            raise ValueError(f"The problem {self.name!r} reads no classifier; leave it out.")
        if lm is None:
            lm = self.model if self.table is None else _made(self.table)
        if isinstance(lm, str | Path):
            lm = load_language_model(lm, device=device, dtype=dtype)
        phi = self.own_potential(classifier, device=device)
        return Target(
            Tempered(lm, **self.tempered) if self.tempered else lm,
            phi,
            prompt=self.prompt,
            num_steps=self.num_steps,
            eos=self.eos,
            stop=self.stop,
            power=self.power,
        )

    def own_potential(
        self,
        classifier: ClassifierLike | None = None,
        *,
        device: str | torch.device | None = None,
    ) -> Potential:
        """Phi, for a target of another prompt or length; arguments are those of ``target``."""
        if not self.classifier:
            return self.potential(None)
        judge = classifier or self.classifier
        return self.potential(cached_classifier(judge, argument="classifier", device=device))


class Problems(Mapping[str, Problem]):
    """Problems by name; shows itself as a table in a notebook."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self._problems = {problem.name: problem for problem in problems}

    def __getitem__(self, name: str) -> Problem:
        return self._problems[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)

    def __repr__(self) -> str:
        width = max(len(name) for name in self)
        return "\n".join(f"{name:{width}}  {problem.summary}" for name, problem in self.items())

    def _repr_html_(self) -> str:
        head = "<tr><th>name</th><th>problem</th><th>what for</th></tr>"
        rows = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align:left">{escape(part)}</td>'
                for part in (name, problem.summary, problem.teaches)
            )
            + "</tr>"
            for name, problem in self.items()
        )
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


@lru_cache
def _made(table: Callable[[], LanguageModel]) -> LanguageModel:
    """A toy's model, made once for each process as others are loaded once."""
    return table()


HOSTILITY = "storybook/hostility"
TINY_STORIES = "roneneldan/TinyStories-33M"
TOXICITY = "nicholasKluge/ToxicityModel"
SENTIMENT = "LiYuan/amazon-review-sentiment-analysis"
_GPT2_REVIEW = {"model": "gpt2-medium", "prompt": "I bought this", "classifier": SENTIMENT}


def load_problem(name: str) -> Problem:
    """A problem by name; ``load_problem(name).target()`` is what everything else takes.

    Raises:
        ValueError: no such problem; says which was probably meant.
    """
    if isinstance(name, str) and name in PROBLEMS:
        return PROBLEMS[name]
    near = difflib.get_close_matches(str(name).lower().replace(" ", "-"), PROBLEMS, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"There is no problem {quoted(name)}. {hint}There are {listed(PROBLEMS)}.")


def _class_of(label: int | str, beta: int = 1) -> Maker:
    def potential(judge: CachedClassifier | None) -> Potential:
        phi = ClassProbability(judge, label=label)
        return phi if beta == 1 else phi**beta

    return potential


def _stars(stars: int, beta: int = 1) -> Maker:
    """Of a classifier whose classes are 1 to 5 stars, in this order if names do not say."""

    def potential(judge: CachedClassifier | None) -> Potential:
        named = any(re.match(r"\s*\d", name) for name in judge.classes)
        return _class_of(stars if named else judge.classes[stars - 1], beta)(judge)

    return potential


def _infilling(num_tokens: int) -> Maker:
    return lambda _: Infilling(num_tokens=num_tokens)


def _reward(**bounds: Any) -> Maker:
    return lambda judge: RewardThreshold(judge, **bounds)


def _tempered(beta: int, **options: Any) -> Maker:
    """Of a judge whose scalar logit is at most 1, as VADER's is."""
    return lambda judge: TemperedReward(judge, beta=beta, reward_max=1.0, **options)


def _problems(**usual: Any) -> Callable[..., Problem]:
    """A maker of problems that have these fields unless they say otherwise."""

    def make(name: str, summary: str, teaches: str, potential: Maker, **more: Any) -> Problem:
        given = {"name": name, "summary": summary, "teaches": teaches, "potential": potential}
        return Problem(**{**usual, **given, **more})

    return make


_storybook = _problems(model="storybook", prompt="Once upon a time there was a", num_steps=20)
_review = _problems(
    model="storybook", prompt="I bought this", num_steps=10, classifier="storybook/stars"
)
_toy = _problems(model="table", form="table", exact=True)
_paper = _problems(model=TINY_STORIES, prompt="Once upon a time, there was a")

_TWINS = (
    _storybook(
        "hostile-story",
        "stories that a classifier finds hostile: p(hostile | text)",
        "The paper's toxicity experiment; Z is about 0.01.",
        _class_of(1),
        classifier=HOSTILITY,
        twin="paper/toxicity",
    ),
    _storybook(
        "hostile-story-beta-10",
        "the same, sharpened: p(hostile | text)^10",
        "The paper's qualitative stories, shorter: a soft potential close to a rare indicator.",
        _class_of(1, beta=10),
        classifier=HOSTILITY,
        twin="paper/story-beta-10",
    ),
    _storybook(
        "hostile-story-threshold",
        "stories of 10 tokens that a classifier calls hostile: log-odds of at least 0",
        "The paper's bounds against K under a rare indicator; Z is about 1e-3.",
        _reward(at_least=0.0),
        classifier=HOSTILITY,
        num_steps=10,
        twin="paper/toxicity-threshold",
    ),
    _review(
        "one-star-review",
        "reviews that a classifier gives one star: p(1 star | text)",
        "The paper's sentiment experiment.",
        _stars(1),
        twin="paper/sentiment",
    ),
    _review(
        "five-star-review",
        "reviews that a classifier gives five stars: p(5 stars | text)",
        "The sentiment experiment's other end: five stars are common, so p0 is not far off.",
        _stars(5),
    ),
    _review(
        "five-star-review-beta-8",
        "reviews of 20 tokens, five stars sharpened: p(5 stars | text)^8",
        "The paper's qualitative reviews: a classifier to a high power.",
        _stars(5, beta=8),
        num_steps=20,
        twin="paper/reviews-beta-100",
    ),
    _review(
        "star-review-conditional",
        "reviews that get as many stars as are asked for: p(o stars | text)",
        "One twist for five targets: psi reads the class o.",
        ClassConditional,
        form="conditional head",
        conditional=True,
    ),
    _storybook(
        "infilling-15-10",
        "15 tokens of a story that lead to the 10 that follow: p0(o | text)",
        "The paper's infilling experiment: psi reads the tokens o.",
        _infilling(10),
        num_steps=15,
        form="conditional head",
        conditional=True,
        twin="paper/infilling-15-10",
    ),
    _storybook(
        "infilling-2-1",
        "2 tokens of a story that lead to the one that follows: p0(o | text)",
        "The paper's small infilling experiment, for which many rollouts are cheap.",
        _infilling(1),
        num_steps=2,
        form="conditional head",
        conditional=True,
        twin="paper/infilling-2-1",
    ),
)

_TOYS = (
    _toy(
        "rainy-week",
        "five days of weather with about two of rain",
        "A soft potential on which nothing goes wrong: the first thing to learn a twist for.",
        lambda _: toys.DaysOfRain(),
        table=toys.weather,
        prompt="sun",
        num_steps=5,
    ),
    _toy(
        "rare-event",
        "eight days at sea with three storms in a row",
        "Z is below 1e-3: without a twist most runs find nothing at all.",
        lambda _: toys.three_storms(),
        table=toys.seas,
        prompt="calm",
        num_steps=8,
    ),
    _toy(
        "late-evidence",
        "the road taken at the first step, judged at the last",
        "Weights stay equal until the end: resampling alone cannot help, a twist can.",
        lambda _: toys.LastStop(meadow=-6.0, brook=-6.0),
        table=toys.roads,
        prompt="gate",
        num_steps=6,
    ),
    _toy(
        "deceptive-evidence",
        "glitter pays at once and mostly ends in mud, which costs for ever",
        "Phi of the text so far misleads: the twist must know the future, not the present.",
        lambda _: toys.SumOfWorths(glitter=2.0, mud=-2.0),
        table=toys.mine,
        prompt="rock",
        num_steps=8,
    ),
    _toy(
        "eos",
        "answers that say yes before they end",
        "Texts end at EOS: from then on phi stands in for psi, and nothing more can happen.",
        lambda _: ContainsToken("yes"),
        table=toys.answers,
        prompt="well",
        num_steps=6,
        eos="absorb",
    ),
    _toy(
        "one-token-infilling",
        "four words that lead to the one that follows",
        "A conditional target whose Z(o) is p0(o): every draw of p0 is an exact sample.",
        lambda _: Infilling(num_tokens=1),
        table=toys.rhymes,
        prompt="fox",
        num_steps=4,
        conditional=True,
    ),
)

_PAPER = (
    _paper(
        "paper/toxicity-threshold",
        "10 tokens of TinyStories with a reward of at most -5 (low is toxic)",
        "Bounds on log Z against the number of particles.",
        _reward(at_most=-5.0),
        classifier=TOXICITY,
        num_steps=10,
        twin="hostile-story-threshold",
    ),
    _paper(
        "paper/toxicity",
        "20 tokens of TinyStories, p(toxic | text)",
        "KL divergences of every method.",
        _class_of("low"),
        classifier=TOXICITY,
        num_steps=20,
        form="own body",
        twin="hostile-story",
    ),
    _paper(
        "paper/sentiment",
        "10 tokens of GPT-2 medium, p(1 star | text)",
        "KL divergences of every method.",
        _stars(1),
        num_steps=10,
        twin="one-star-review",
        **_GPT2_REVIEW,
    ),
    _paper(
        "paper/infilling-15-10",
        "15 tokens of TinyStories that lead to the 10 that follow",
        "KL divergences of every method, one twist for every o.",
        _infilling(10),
        num_steps=15,
        form="conditional body",
        conditional=True,
        twin="infilling-15-10",
    ),
    _paper(
        "paper/infilling-2-1",
        "2 tokens of TinyStories that lead to the one that follows",
        "KL divergences of every method, one twist for every o.",
        _infilling(1),
        num_steps=2,
        form="conditional body",
        conditional=True,
        twin="infilling-2-1",
    ),
    _paper(
        "paper/story-beta-10",
        "200 tokens of TinyStories, p(toxic | text)^10",
        "Texts to read.",
        _class_of("low", beta=10),
        classifier=TOXICITY,
        num_steps=200,
        form="linear head",
        twin="hostile-story-beta-10",
    ),
    _paper(
        "paper/reviews-beta-100",
        "20 tokens of GPT-2 medium, p(5 stars | text)^100",
        "Texts to read.",
        _stars(5, beta=100),
        num_steps=20,
        form="linear head",
        twin="five-star-review-beta-8",
        **_GPT2_REVIEW,
    ),
)

_PRODUCT = {
    "title": "product",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 24},
        "category": {"enum": ["book", "toy", "food", "tool"]},
        "price": {"type": "integer", "minimum": 1, "maximum": 50},
        "note": {"type": "string", "minLength": 3, "maxLength": 40},
    },
    "required": ["name", "category", "price", "note"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}
_PRODUCTS = """Products of our shop as JSON:
{"name": "Red wooden train", "category": "toy", "price": 25, "note": "Runs without batteries."}
{"name": "Plum jam", "category": "food", "price": 4, "note": "Made by hand."}
"""

_smollm2 = _problems(model="smollm2", num_steps=16, classifier="vader/negative")
_STORY = "Once upon a time, there was a"

_SENTIMENTS = (
    _smollm2(
        "happy-review",
        "reviews of a film that VADER finds positive: exp(5 sentiment)",
        "The paper's sentiment experiment on a real model: phi is soft, and p0 not far off.",
        _tempered(5),
        prompt="The movie was",
        classifier="vader/positive",
    ),
    _smollm2(
        "unhappy-review",
        "reviews of a product that VADER finds negative: exp(-5 sentiment)",
        "The same from the other end, which an instruction-tuned model seldom writes.",
        _tempered(5),
        prompt="This product is",
    ),
    _smollm2(
        "unhappy-story",
        "stories that VADER finds negative: exp(-5 sentiment)",
        "The paper's undesirable stories on a real model.",
        _tempered(5),
        prompt=_STORY,
    ),
    _smollm2(
        "unhappy-story-beta-10",
        "the same, sharpened: exp(-10 sentiment)",
        "A soft potential close to a rare indicator.",
        _tempered(10),
        prompt=_STORY,
    ),
    _smollm2(
        "unhappy-story-threshold",
        "stories with a VADER sentiment of at most -0.9",
        "A rare indicator on a real model: Z is about 1e-3.",
        _reward(at_least=0.9),
        prompt=_STORY,
    ),
    _smollm2(
        "sad-answer",
        "a chat model's first line of a sad story: exp(-5 sentiment)",
        "Steering an assistant: the prompt is a chat, and its answers are seldom sad enough.",
        _tempered(5, scope="continuation"),
        prompt=[{"role": "user", "content": "Write the first line of a sad story."}],
        eos="absorb",
    ),
)

_CONSTRAINED = (
    Problem(
        name="product-json",
        summary="a product of a shop as JSON of a schema: name, category, price and note",
        teaches="The look-ahead twist masks the tokens that the schema rules out. Masks alone "
        "(resampling: never) give valid texts of the wrong frequencies; the weights say by how "
        "much, and log Z is the mass of valid texts.",
        model="smollm2",
        prompt=_PRODUCTS,
        num_steps=44,
        eos="absorb",
        potential=lambda _: JSONSchema(_PRODUCT),
    ),
)

PROBLEMS = Problems((*_TWINS, *_TOYS, *_SENTIMENTS, *_CONSTRAINED, *_PAPER))
"""Every named problem: twins of the paper's on the model that ships, toys, the paper's own."""


class OfProblem(Potential):
    """The potential of a named problem, whatever it is: ``OfProblem("rainy-week")`` makes that."""

    def __new__(cls, problem: str) -> Any:
        """The problem's own potential."""
        return load_problem(problem).own_potential()

    @classmethod
    def code(cls, arguments: Mapping[str, Any]) -> str:
        """The problem, loaded, and its potential."""
        return f"tw.load_problem({code_value(arguments['problem'])}).own_potential()"

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """What a toy's potential says of itself; the name of another problem."""
        name = part["problem"]
        if load_problem(name).table is None:
            return f"log φ of {name}(s)"
        line = load_problem(name).own_potential().describe()
        inner = re.fullmatch(r"exp\((.*)\)", line)
        return f"({inner[1]})" if inner else f"log {line}"
