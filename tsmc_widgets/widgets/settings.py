"""What the controls of ``WatchSMC`` ask for, as plain values, and the ``RunSpec`` they make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tsmc_widgets.errors import UnknownTokenError, check_one_of
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.targets.classifier import cached_classifier
from tsmc_widgets.targets.description import parse_potential
from tsmc_widgets.targets.target import Target

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
            yield _class_of(judges.stars, self.stars, _STARS[self.stars - 1], self.star_beta)
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
                raise UnknownTokenError(f"No text can contain “{word}”: {error}") from error
        eos = "ignore" if lm.eos_token_id is None else self.eos
        potential = parse_potential(self.factors(judges))
        return Target(lm, potential, prompt=self.prompt, num_steps=self.num_steps, eos=eos)


_STARS = [f"{n} star{'s' * (n > 1)}" for n in range(1, 6)]


def _class_of(judge: Any, label: int | str, name: str, beta: float) -> dict[str, Any]:
    """A class by its name where the classifier ships, else by what any such classifier takes."""
    label = name if isinstance(judge, str) else label
    part = {"kind": "ClassProbability", "model": judge, "label": label}
    return part if beta == 1 else {**part, "beta": beta}


def split_words(text: str) -> list[str]:
    """The words and phrases between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
