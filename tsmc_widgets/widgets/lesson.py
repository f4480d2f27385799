"""A training that can be taken step by step: it prepares, trains, races and evaluates."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.evaluation.bounds import LogZBounds, MeanOverRuns, log_z_bounds
from tsmc_widgets.evaluation.twist_quality import Prefixes, all_prefixes, pick_prefixes, roll_out
from tsmc_widgets.learning.objectives import METHODS as ALL_METHODS
from tsmc_widgets.learning.objectives import draws_from_base, link_for
from tsmc_widgets.learning.positives import ExactPool, Positives, ReplayedPositives
from tsmc_widgets.learning.rates import DEFAULT_RATE, DEFAULT_RATES, Rate
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.proposals import Base, TwistInduced
from tsmc_widgets.targets.exact_samples import ExactDraws
from tsmc_widgets.targets.problems import load_problem
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import TWIST_FORMS
from tsmc_widgets.twists.trainable import TrainableModule
from tsmc_widgets.widgets.live_page import no_progress_bars

HELD_OUT = 40
MOST_HELD_OUT = 160
PLENTY = 300
MOST_DRAWS = 5000


def enough(draws: ExactDraws) -> bool:
    """Whether training can begin: log Z is known well, or knowing it better would take too long."""
    if len(draws) < HELD_OUT:
        return False
    return len(draws) >= PLENTY or draws.proposed >= MOST_DRAWS


FIRST = ("ctl", "ctl+dpg")
METHODS = (*FIRST, *(name for name in ALL_METHODS if name not in (*FIRST, "rl_sigma")))
"""Methods of the menu; the first is where a user starts."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A target that a twist can be learned for.

    Attributes:
        name: in the package's ``PROBLEMS``.
        forms: names of the twist forms that fit its model.
    """

    name: str
    forms: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the target is small enough to compute log psi* and log Z exactly."""
        return load_problem(self.name).exact

    def make(self) -> Target:
        """The target; its model is loaded once."""
        return load_problem(self.name).target()


@dataclass(frozen=True, slots=True)
class Form:
    """A form of twist.

    Attributes:
        make: of (target, link, seed) to a twist at psi = 1.
        rate: the learning rate that suits it.
    """

    make: Callable[[Target, str, int], TrainableModule]
    rate: Rate

    @property
    def learning_rate(self) -> float:
        """Of the first update."""
        return self.rate.at(0)


NEURAL = ("linear head", "MLP head", "own body", "LoRA")
FORMS: dict[str, Form] = {
    name: Form(
        TWIST_FORMS[name].make,
        DEFAULT_RATES.get(TWIST_FORMS[name].kind.__name__, DEFAULT_RATE),
    )
    for name in (*NEURAL, "table")
}

PROBLEMS: dict[str, Problem] = {
    "1-star reviews": Problem("one-star-review", NEURAL),
    "5-star reviews": Problem("five-star-review-beta-8", NEURAL),
    "hostile stories": Problem("hostile-story", NEURAL),
    "two days of rain (toy)": Problem("rainy-week", ("table",)),
    "three storms, a rare event (toy)": Problem("rare-event", ("table",)),
    "two roads, late evidence (toy)": Problem("late-evidence", ("table",)),
    "glitter and mud, deceptive evidence (toy)": Problem("deceptive-evidence", ("table",)),
    "yes before the end, EOS (toy)": Problem("eos", ("table",)),
}


# What the controls can show.
LEAST_RATE, MOST_RATE = 1e-5, 1.0
MOST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One training, in the words of the controls.

    Attributes:
        problem: a name in ``PROBLEMS``.
        method: one of ``METHODS``.
        rivals: methods that race against it.
        form: a name in ``FORMS`` that fits the problem; "" for its usual one.
        learning_rate: of Adam, from ``LEAST_RATE`` to ``MOST_RATE``; 0 for the form's usual one.
        batch_size: texts drawn for each update.
        bound_particles: K of the bounds on log Z.
        num_updates: that one press of Start takes with each method.
        seed: of all noise, at most ``MOST_SEED``.
    """

    problem: str = "1-star reviews"
    method: str = METHODS[0]
    rivals: tuple[str, ...] = ()
    form: str = ""
    learning_rate: float | int = 0.0
    batch_size: int = 100
    bound_particles: int = 1
    num_updates: int = 120
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the choices, and fill in the usual form and rate."""
        check_one_of("problem", self.problem, PROBLEMS)
        forms = PROBLEMS[self.problem].forms
        if not self.form:
            object.__setattr__(self, "form", "MLP head" if "MLP head" in forms else forms[0])
        check_one_of("form", self.form, forms)
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", FORMS[self.form].learning_rate)
        if not LEAST_RATE <= self.learning_rate <= MOST_RATE:
            raise ValueError(
                f"learning_rate must be from {LEAST_RATE:g} to {MOST_RATE:g}, or 0 for the form's "
                f"usual one; got {self.learning_rate!r}."
            )
        for name in self.methods:
            check_one_of("method", name, METHODS)
        for name, least in (("batch_size", 2), ("bound_particles", 1), ("num_updates", 1)):
            check_integer(name, getattr(self, name), at_least=least)
        check_integer("seed", self.seed, at_least=0)
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be at most {MOST_SEED}; got {self.seed}.")

    @property
    def methods(self) -> tuple[str, ...]:
        """All that are trained, the chosen one first, the others in the order of the menu."""
        rivals = {name for name in self.rivals if name != self.method}
        others = [name for name in METHODS if name in rivals]
        return (self.method, *others, *sorted(rivals - set(others)))


def make_twist(settings: TrainSettings, target: Target, method: str) -> Any:
    """A fresh twist at a constant psi, with the link that the method wants."""
    return FORMS[settings.form].make(target, link_for(method), settings.seed)


EVERY = 20
"""Updates between two evaluations."""
POOL = 500
"""Exact samples that a target offers to learn from where it can be enumerated."""
NUM_RUNS = 160
NUM_TEXTS = 64
SHOWN_TEXTS = 10


class Racer:
    """One method with its twist, and all that was measured of it.

    Attributes:
        method: its name.
        trainer: a ``TwistTrainer``.
        bounds: (update, ``LogZBounds``) at each evaluation.
        ess: (update, share of the batch size) of each batch; where batches come from p0 and so
            say nothing of the twist, of a sweep with the twist at each evaluation.
        scatter: learned and optimal log psi at the last evaluation.
        samples: texts of the last evaluation.
    """

    def __init__(self, method: str, trainer: TwistTrainer) -> None:
        self.method = method
        self.trainer = trainer
        self.bounds: list[tuple[int, LogZBounds]] = []
        self.ess: list[tuple[int, float]] = []
        self.scatter: dict[str, Any] | None = None
        self.samples: dict[str, Any] | None = None

    @property
    def draws_from_base(self) -> bool:
        """Whether its batches come from p0, whatever the twist."""
        return draws_from_base(self.trainer.weights)

    @property
    def proposal_only(self) -> bool:
        """Whether its twist says where to go and not what a particle weighs."""
        return self.trainer.twist.proposal_only

    def update(self) -> None:
        """Take one update."""
        update = self.trainer.update()
        if not self.draws_from_base:
            self.ess.append((update.number, update.ess / self.trainer.batch_size))


class Lesson:
    """A training in small steps, for the runner.

    Attributes:
        settings: what was asked for.
        target: None until the first step.
        racers: one for each method, once everything is prepared.
        log_z: log Z in nats and its standard error (0 where exact).
        before: texts of p0 itself.
        goal: updates of each method after which the lesson rests.
        doing: what the step in progress is about.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.target: Target | None = None
        self.racers: list[Racer] = []
        self.log_z: tuple[float, float] | None = None
        self.prefixes: Prefixes | None = None
        self.held_out: Any = None
        self.before: dict[str, Any] | None = None
        self.goal = settings.num_updates
        self.doing = "loading the model"
        self._draws: ExactDraws | None = None
        self._todo: deque[Callable[[], None]] = deque([self._load])

    @property
    def exact(self) -> bool:
        """Whether log Z and log psi* are computed and not estimated."""
        return PROBLEMS[self.settings.problem].exact

    @property
    def trace(self) -> Lesson:
        """The runner's word for what is on record."""
        return self

    @property
    def done(self) -> bool:
        """Whether every method has reached the goal and been evaluated."""
        return not self._todo and all(racer.trainer.done >= self.goal for racer in self.racers)

    @property
    def updates(self) -> int:
        """Updates that every method has taken."""
        return min((racer.trainer.done for racer in self.racers), default=0)

    def step(self) -> None:
        """One update of one method, or one piece of preparing or evaluating."""
        if self._todo:
            # What fails stays at the head, so that another Start tries it again.
            self._todo[0]()
            self._todo.popleft()
            return
        racer = min(self.racers, key=lambda racer: racer.trainer.done)
        self.doing = "training"
        racer.update()
        done = racer.trainer.done
        if done % EVERY == 0 or done == self.goal:
            self._todo.append(lambda: self._evaluate(racer))

    def _load(self) -> None:
        settings = self.settings
        with no_progress_bars():
            self.target = PROBLEMS[settings.problem].make()
        if self.exact:
            self._todo.append(self._know_everything)
            return
        self._draws = ExactDraws(self.target, settings.seed)
        self._say_draws()
        self._todo.append(self._draw)

    def _know_everything(self) -> None:
        oracle, self.prefixes = all_prefixes(self.target)
        self.log_z = (oracle.log_z, 0.0)
        seed = self.settings.seed
        tokens = oracle.sample(MOST_HELD_OUT + POOL, seed)
        self.held_out = tokens[:MOST_HELD_OUT]
        pool = tokens[MOST_HELD_OUT:]
        source = ExactPool(pool, self.target.log_phi(pool), seed)
        self._start(lambda: source)

    def _draw(self) -> None:
        self._draws.extend()
        self.log_z = self._draws.log_z
        self._say_draws()
        if not enough(self._draws):
            self._todo.append(self._draw)
            return
        tokens = self._draws.tokens
        seed = self.settings.seed
        self.held_out = tokens[:MOST_HELD_OUT]
        self.prefixes = pick_prefixes(self.target, tokens.flip(0), seed=seed)
        self.doing = "estimating the optimal twist by rollouts"
        for place in range(self.prefixes.size):
            self._todo.append(
                lambda place=place: roll_out(self.target, self.prefixes, place, seed=seed)
            )
        self._todo.append(self._weigh)

    def _weigh(self) -> None:
        self.doing = "weighing texts of p0, with which the training begins"
        start = ReplayedPositives(self.target, self.settings.seed).afresh()
        self._start(start.afresh)

    def _say_draws(self) -> None:
        found, looked = len(self._draws), self._draws.proposed
        self.doing = f"drawing exact samples by rejection: {found} from {looked} texts"

    def _start(self, source: Callable[[], Positives]) -> None:
        settings = self.settings
        racers = []
        for method in settings.methods:
            trainer = TwistTrainer(
                self.target,
                make_twist(settings, self.target, method),
                method=method,
                batch_size=settings.batch_size,
                learning_rate=replace(FORMS[settings.form].rate, rate=settings.learning_rate),
                positives=source(),
                seed=settings.seed,
            )
            racers.append(Racer(method, trainer))
        self.before = self._sample(Base())
        self.doing = "measuring the untrained twist"
        self.racers = racers
        for racer in racers:
            self._todo.append(lambda racer=racer: self._evaluate(racer))

    def _evaluate(self, racer: Racer) -> None:
        """Bounds, comparison with the optimal twist, and texts, of the twist as it stands."""
        self.doing = "measuring"
        done, twist = racer.trainer.done, racer.trainer.twist
        racer.scatter = self.prefixes.compare(self.target, twist)
        racer.samples = self._sample(TwistInduced(twist))
        bounds = self._bound(twist)
        if racer.draws_from_base:
            racer.ess.append((done, racer.samples["ess"]))
        elif not racer.ess:
            racer.ess.append((0, racer.samples["ess"]))
        racer.bounds.append((done, bounds))

    def _bound(self, twist: Any) -> LogZBounds:
        size = self.settings.bound_particles
        # One particle is never resampled, so that the twist only proposes, whatever it is.
        alone = twist.proposal_only or size == 1
        how = (
            {"proposal": TwistInduced(twist), "rule": "never"}
            if alone
            else {"proposal": TwistInduced(), "twist": twist}
        )
        return log_z_bounds(
            self.target,
            num_particles=size,
            num_runs=NUM_RUNS,
            exact_samples=self.held_out,
            seed=self.settings.seed,
            **how,
        )

    @torch.no_grad()
    def _sample(self, proposal: Any) -> dict[str, Any]:
        """Texts from a proposal, all with the same noise."""
        trace = run_smc(
            self.target,
            num_particles=NUM_TEXTS,
            proposal=proposal,
            rule="never",
            seed=self.settings.seed,
            dead_runs="keep",
        )
        tokens = trace.paths("tokens")[0]
        log_phi = trace.columns.log_psi[0, -1]
        texts = self.target.texts(tokens[:SHOWN_TEXTS])
        return {
            "texts": list(zip(texts, log_phi[:SHOWN_TEXTS].tolist(), strict=True)),
            "ess": float(numerics.ess(trace.columns.log_weights[0, -1])) / NUM_TEXTS,
            "mean_phi": MeanOverRuns.of(log_phi.exp()),
        }


def speed(racers: list[Racer], last: int = 20) -> float:
    """Updates a second over the last ones of every method, evaluations left out."""
    seconds = [update.seconds for racer in racers for update in racer.trainer.history[-last:]]
    return len(seconds) / sum(seconds) if sum(seconds) > 0 else math.nan
