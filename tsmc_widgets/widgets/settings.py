"""What the controls say, as plain values, and the run that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tsmc_widgets.errors import UnknownTokenError, check_one_of
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.api import start_smc
from tsmc_widgets.smc.proposals import Base, TwistInduced
from tsmc_widgets.smc.session import SMCSession
from tsmc_widgets.targets.classifier import (
    ClassProbability,
    RewardThreshold,
    TemperedReward,
    cached_classifier,
)
from tsmc_widgets.targets.protocol import Constant, Potential
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.words import AvoidsWord, ContainsWord
from tsmc_widgets.twists.lookahead import LookAheadTwist, TemperedTwist

HOSTILITY = ("any", "threshold", "tempered")
TWISTS = ("none", "look-ahead", "reversed")
REVERSED = -0.25
"""Power of the look-ahead twist that is wrong on purpose."""
PROPOSALS = ("base", "twist-induced")
NEXT_TOKENS = 8
"""Likeliest next tokens recorded for the view's inspector."""


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
        seed: of the noise.
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


@dataclass(frozen=True, slots=True)
class Judges:
    """The classifiers behind the controls: names, folders or objects; None has no control."""

    stars: Any = "storybook/stars"
    hostility: Any = "storybook/hostility"

    def loaded(self) -> Judges:
        """The same with the classifiers themselves in place of their names."""
        judges = (self.stars, self.hostility)
        return Judges(*(None if judge is None else cached_classifier(judge) for judge in judges))


def split_words(text: str) -> list[str]:
    """The words and phrases between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def make_potential(settings: RunSettings, judges: Judges) -> Potential:
    """The product of what is asked for; 1 where nothing is."""
    factors = list(_factors(settings, judges))
    if not factors:
        return Constant()
    potential = factors[0]
    for factor in factors[1:]:
        potential = potential * factor
    return potential


def _factors(settings: RunSettings, judges: Judges) -> Iterator[Potential]:
    for word in split_words(settings.contains):
        yield ContainsWord(word)
    avoided = split_words(settings.avoids)
    if avoided:
        yield AvoidsWord(*avoided)
    if settings.stars and settings.star_beta and judges.stars is not None:
        yield ClassProbability(judges.stars, label=settings.stars) ** settings.star_beta
    if judges.hostility is None:
        return
    if settings.hostility == "threshold":
        yield RewardThreshold(judges.hostility, at_least=settings.hostility_at_least)
    elif settings.hostility == "tempered" and settings.hostility_beta > 0:
        yield TemperedReward(judges.hostility, beta=settings.hostility_beta)
    elif settings.hostility == "tempered" and settings.hostility_beta < 0:
        yield ClassProbability(judges.hostility, label="low") ** -settings.hostility_beta


def make_target(settings: RunSettings, lm: LanguageModel, judges: Judges) -> Target:
    """The target; words that the model cannot write are refused by name."""
    for word in split_words(settings.contains):
        try:
            lm.encode(word)
        except UnknownTokenError as error:
            raise UnknownTokenError(f"No text can contain “{word}”: {error}") from error
    potential = make_potential(settings, judges)
    eos = "ignore" if lm.eos_token_id is None else settings.eos
    return Target(lm, potential, prompt=settings.prompt, num_steps=settings.num_steps, eos=eos)


def make_session(settings: RunSettings, target: Target) -> SMCSession:
    """The run, ready for its first step."""
    twist = None if settings.twist == "none" else LookAheadTwist(target)
    if settings.twist == "reversed":
        twist = TemperedTwist(twist, REVERSED)
    follows = twist is not None and settings.proposal == "twist-induced"
    return start_smc(
        target,
        num_particles=settings.num_particles,
        twist=twist,
        proposal=TwistInduced() if follows else Base(),
        resampler=settings.resampler,
        ess_threshold=settings.ess_threshold,
        seed=settings.seed,
        top_k=NEXT_TOKENS,
    )


def spec_of(settings: RunSettings) -> RunSpec:
    """The same run as a spec, on the model and with the classifiers that ship."""
    twist = settings.twist != "none"
    return RunSpec(
        problem={
            "name": "my own",
            "model": "storybook",
            "prompt": settings.prompt,
            "num_steps": settings.num_steps,
            "potential": list(_described_factors(settings)) or [{"kind": "Constant"}],
            "eos": settings.eos,
        },
        method="look-ahead" if twist else "none",
        twist_power=REVERSED if settings.twist == "reversed" else 1.0,
        proposal="" if not twist else "base" if settings.proposal == "base" else "twist",
        resampler=settings.resampler,
        ess_threshold=settings.ess_threshold,
        num_particles=settings.num_particles,
        num_runs=1,
        seed=settings.seed,
    )


def _described_factors(settings: RunSettings) -> Iterator[dict[str, Any]]:
    for word in split_words(settings.contains):
        yield {"kind": "ContainsWord", "args": [word]}
    avoided = split_words(settings.avoids)
    if avoided:
        yield {"kind": "AvoidsWord", "args": avoided}
    if settings.stars and settings.star_beta:
        stars = f"{settings.stars} star{'s' * (settings.stars > 1)}"
        yield _powered("storybook/stars", stars, settings.star_beta)
    reward, beta = {"reward": "storybook/hostility"}, settings.hostility_beta
    if settings.hostility == "threshold":
        yield {"kind": "RewardThreshold", **reward, "at_least": settings.hostility_at_least}
    elif settings.hostility == "tempered" and beta > 0:
        yield {"kind": "TemperedReward", **reward, "beta": beta}
    elif settings.hostility == "tempered" and beta < 0:
        yield _powered("storybook/hostility", "not hostile", -beta)


def _powered(model: str, label: str, beta: float) -> dict[str, Any]:
    part = {"kind": "ClassProbability", "model": model, "label": label}
    return part if beta == 1 else {**part, "beta": beta}
