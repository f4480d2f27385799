"""Named problems: the experiments of the paper, their twins on the model that ships, and toys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.targets import toys
from tsmc_widgets.targets.classifier import CachedClassifier, ClassConditional, ClassProbability
from tsmc_widgets.targets.continuation import Infilling
from tsmc_widgets.targets.problem import Maker, Problem, Problems
from tsmc_widgets.targets.protocol import Potential
from tsmc_widgets.targets.rewards import RewardThreshold
from tsmc_widgets.targets.tokens import ContainsToken

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
    raise ValueError(f"There is no problem {name!r}. {hint}There are {', '.join(PROBLEMS)}.")


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


def _reward(**bounds: float) -> Maker:
    return lambda judge: RewardThreshold(judge, **bounds)


def _storybook(name: str, summary: str, teaches: str, potential: Maker, **more: Any) -> Problem:
    story = {"prompt": "Once upon a time there was a", "num_steps": 20}
    return Problem(
        name=name,
        summary=summary,
        teaches=teaches,
        potential=potential,
        **{"model": "storybook", **story, **more},
    )


def _review(name: str, summary: str, teaches: str, potential: Maker, **more: Any) -> Problem:
    review = {"prompt": "I bought this", "num_steps": 10, "classifier": "storybook/stars"}
    return _storybook(name, summary, teaches, potential, **{**review, **more})


def _toy(
    name: str,
    summary: str,
    teaches: str,
    table: Callable[[], LanguageModel],
    potential: Callable[[], Potential],
    **more: Any,
) -> Problem:
    return Problem(
        name=name,
        summary=summary,
        teaches=teaches,
        model="table",
        table=table,
        potential=lambda _: potential(),
        **{"form": "table", "exact": True, "prompt": "", **more},
    )


def _paper(name: str, summary: str, teaches: str, potential: Maker, **more: Any) -> Problem:
    story = {"model": TINY_STORIES, "prompt": "Once upon a time, there was a"}
    return Problem(
        name=name, summary=summary, teaches=teaches, potential=potential, **{**story, **more}
    )


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
        toys.weather,
        toys.DaysOfRain,
        prompt="sun",
        num_steps=5,
    ),
    _toy(
        "rare-event",
        "eight days at sea with three storms in a row",
        "Z is below 1e-3: without a twist most runs find nothing at all.",
        toys.seas,
        toys.three_storms,
        prompt="calm",
        num_steps=8,
    ),
    _toy(
        "late-evidence",
        "the road taken at the first step, judged at the last",
        "Weights stay equal until the end: resampling alone can not help, a twist can.",
        toys.roads,
        lambda: toys.LastStop(meadow=-6.0, brook=-6.0),
        prompt="gate",
        num_steps=6,
    ),
    _toy(
        "deceptive-evidence",
        "glitter pays at once and mostly ends in mud, which costs for ever",
        "Phi of the text so far misleads: the twist must know the future, not the present.",
        toys.mine,
        lambda: toys.SumOfWorths(glitter=2.0, mud=-2.0),
        prompt="rock",
        num_steps=8,
    ),
    _toy(
        "eos",
        "answers that say yes before they end",
        "Texts end at EOS: from then on phi stands in for psi, and nothing more can happen.",
        toys.answers,
        lambda: ContainsToken("yes"),
        prompt="well",
        num_steps=6,
        eos="absorb",
    ),
    _toy(
        "one-token-infilling",
        "four words that lead to the one that follows",
        "A conditional target whose Z(o) is p0(o): every draw of p0 is an exact sample.",
        toys.rhymes,
        lambda: Infilling(num_tokens=1),
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

PROBLEMS = Problems((*_TWINS, *_TOYS, *_PAPER))
"""Every named problem: twins of the paper's on the model that ships, toys, the paper's own."""
