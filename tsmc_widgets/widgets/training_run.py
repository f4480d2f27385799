"""A twist training taken step by step: prepare, train one or several methods, evaluate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer, check_one_of, quoted, stop_when
from tsmc_widgets.evaluation.bounds import LogZBounds, log_z_bounds
from tsmc_widgets.evaluation.estimates import PooledOverRuns
from tsmc_widgets.evaluation.twist_quality import Prefixes, all_prefixes, pick_prefixes, roll_out
from tsmc_widgets.learning.objectives import draws_from_base, link_for
from tsmc_widgets.learning.positives import ExactPool, Positives, ReplayedPositives
from tsmc_widgets.learning.rates import DEFAULT_RATE, DEFAULT_RATES, Rate
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.proposals import Base, TwistInduced
from tsmc_widgets.targets.description import parse_problem, problem_reference
from tsmc_widgets.targets.exact_samples import ExactDraws
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import TWIST_FORMS, make_twist
from tsmc_widgets.widgets.controls import MOST_SEED
from tsmc_widgets.widgets.session import no_progress_bars

HELD_OUT = 40
MOST_HELD_OUT = 160
PLENTY = 300
MOST_DRAWS = 5000


def has_enough_held_out(draws: ExactDraws) -> bool:
    """Whether training can begin: log Z is known well, or knowing it better would take too long."""
    if len(draws) < HELD_OUT:
        return False
    return len(draws) >= PLENTY or draws.proposed >= MOST_DRAWS


PROBLEM_LABELS = {
    "one-star-review": "1-star reviews",
    "five-star-review-beta-8": "5-star reviews",
    "hostile-story": "hostile stories",
    "rainy-week": "two days of rain (toy)",
    "rare-event": "three storms, a rare event (toy)",
    "late-evidence": "two roads, late evidence (toy)",
    "deceptive-evidence": "glitter and mud, deceptive evidence (toy)",
    "eos": "yes before the end, EOS (toy)",
}
"""Named problems of the menu, and what it calls them."""
METHOD_LABELS = {
    "ctl": "CTL: contrastive twist learning",
    "ctl+dpg": "CTL + DPG: both, 1 to 10",
    "cd": "CD: regress φ on a prefix",
    "dpg": "DPG: policy gradient (proposal only)",
    "fudge": "FUDGE: predict φ from a prefix",
    "nvi": "NVI: nested variational inference",
    "rl": "RL: path consistency",
    "sixo": "SIXO: classify σ against p₀",
    "ppo": "PPO: clipped policy (proposal only)",
}
"""Methods of the menu, and what it calls them; the first is where a user starts."""
METHODS = tuple(METHOD_LABELS)
FORMS = ("tied head", "linear head", "MLP head", "own body", "LoRA", "table")


def problem_name(problem: Any) -> Any:
    """The name of a problem that is given by its label; anything else as it is."""
    names = {label: name for name, label in PROBLEM_LABELS.items()}
    return names.get(problem, problem) if isinstance(problem, str) else problem


def problem_label(problem: Any) -> str:
    """What the menu calls a problem: one that is described goes by its own name."""
    return PROBLEM_LABELS[problem] if isinstance(problem, str) else problem["name"]


def forms_of(problem: Any) -> tuple[str, ...]:
    """Forms of twist that fit the model of a problem: a table for a toy, else the others."""
    return FORMS[-1:] if parse_problem(problem).table else FORMS[:-1]


def usual_rate(form: str) -> Rate:
    """The learning rate that suits a form."""
    return DEFAULT_RATES.get(TWIST_FORMS[form].kind.__name__, DEFAULT_RATE)


# What the controls can show.
LEAST_RATE, MOST_RATE = 1e-5, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One training, in the words of the controls.

    Attributes:
        problem: a name in ``PROBLEM_LABELS``, or its label; or a description, as for ``RunSpec``,
            with a model folder or registered functions of one's own.
        method: one of ``METHODS``.
        rivals: other methods that are trained beside it.
        form: a name in ``TWIST_FORMS`` that fits the problem; "" for its usual one.
        learning_rate: of Adam, from ``LEAST_RATE`` to ``MOST_RATE``; 0 for the form's usual one.
        batch_size: texts drawn for each update.
        bound_particles: K of the bounds on log Z.
        num_updates: that one press of Start takes with each method.
        seed: of all noise, at most ``MOST_SEED``.
    """

    problem: Any = "one-star-review"
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
        problem = problem_name(self.problem)
        if isinstance(problem, str):
            check_one_of("problem", problem, PROBLEM_LABELS)
        elif parse_problem(problem).conditional:
            raise ValueError("problem must not wait for an observation: give φ one.")
        else:
            problem = problem_reference(problem)
        object.__setattr__(self, "problem", problem)
        forms = forms_of(self.problem)
        if not self.form:
            usual = parse_problem(self.problem).form
            form = next(each for each in (usual, "MLP head", "table") if each in forms)
            object.__setattr__(self, "form", form)
        check_one_of("form", self.form, forms)
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", usual_rate(self.form).at(0))
        if not LEAST_RATE <= self.learning_rate <= MOST_RATE:
            raise ValueError(
                f"learning_rate must be from {LEAST_RATE:g} to {MOST_RATE:g}, or 0 for the form's "
                f"usual one; got {quoted(self.learning_rate)}."
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


EVERY = 20
"""Updates between two evaluations."""
POOL = 500
"""Exact samples that a target offers to learn from where it can be enumerated."""
NUM_RUNS = 160
NUM_TEXTS = 64
SHOWN_TEXTS = 10


class MethodRun:
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
        """Whether its twist can propose tokens but not weight particles."""
        return self.trainer.twist.proposal_only

    def update(self) -> None:
        """Take one update."""
        update = self.trainer.update()
        if not self.draws_from_base:
            self.ess.append((update.number, update.ess / self.trainer.batch_size))


class TrainingRun:
    """A training in small steps, for a ``LiveSession``.

    Attributes:
        settings: what was asked for.
        target: None until the first step.
        runs: one for each method, once everything is prepared.
        log_z: log Z in nats and its standard error (0 where exact).
        before: texts of p0 itself.
        goal: updates of each method after which the training ends.
        doing: what the step in progress is about.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.target: Target | None = None
        self.runs: list[MethodRun] = []
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
        return parse_problem(self.settings.problem).exact

    @property
    def trace(self) -> TrainingRun:
        """Itself: it records what it did."""
        return self

    @property
    def done(self) -> bool:
        """Whether every method has reached the goal and been evaluated."""
        return not self._todo and all(run.trainer.done >= self.goal for run in self.runs)

    @property
    def updates(self) -> int:
        """Updates that every method has taken."""
        return min((run.trainer.done for run in self.runs), default=0)

    def step(self) -> None:
        """One update of one method, or one piece of preparing or evaluating."""
        if self._todo:
            # What fails stays at the head, so that another Start tries it again.
            self._todo[0]()
            self._todo.popleft()
            return
        run = min(self.runs, key=lambda run: run.trainer.done)
        self.doing = "training"
        with stop_when(lambda: False):  # Stop ends a training between two updates.
            run.update()
        done = run.trainer.done
        if done % EVERY == 0 or done == self.goal:
            self._todo.append(lambda: self._evaluate(run))

    def _load(self) -> None:
        settings = self.settings
        with no_progress_bars():
            self.target = parse_problem(settings.problem).target()
        if self.exact:
            self._todo.append(self._enumerate)
            return
        self._draws = ExactDraws(self.target, settings.seed)
        self._report_draws()
        self._todo.append(self._draw)

    def _enumerate(self) -> None:
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
        self._report_draws()
        if not has_enough_held_out(self._draws):
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
        self._todo.append(self._weight)

    def _weight(self) -> None:
        self.doing = "weighting texts of p0, with which the training begins"
        start = ReplayedPositives(self.target, self.settings.seed).afresh()
        self._start(start.afresh)

    def _report_draws(self) -> None:
        found, looked = len(self._draws), self._draws.proposed
        self.doing = f"drawing exact samples by rejection: {found} from {looked} texts"

    def _start(self, source: Callable[[], Positives]) -> None:
        settings = self.settings
        runs = []
        for method in settings.methods:
            trainer = TwistTrainer(
                self.target,
                make_twist(settings.form, self.target, link=link_for(method), seed=settings.seed),
                method=method,
                batch_size=settings.batch_size,
                learning_rate=replace(usual_rate(settings.form), rate=settings.learning_rate),
                positives=source(),
                seed=settings.seed,
            )
            runs.append(MethodRun(method, trainer))
        self.before = self._sample(Base())
        self.doing = "measuring the untrained twist"
        self.runs = runs
        for run in runs:
            self._todo.append(lambda run=run: self._evaluate(run))

    def _evaluate(self, run: MethodRun) -> None:
        """Bounds, comparison with the optimal twist, and texts, of the twist as it stands."""
        self.doing = "measuring"
        done, twist = run.trainer.done, run.trainer.twist
        run.scatter = self.prefixes.compare(self.target, twist)
        run.samples = self._sample(TwistInduced(twist))
        bounds = self._bound(twist)
        if run.draws_from_base:
            run.ess.append((done, run.samples["ess"]))
        elif not run.ess:
            run.ess.append((0, run.samples["ess"]))
        run.bounds.append((done, bounds))

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
        texts = self.target.labels(tokens[:SHOWN_TEXTS])
        return {
            "texts": list(zip(texts, log_phi[:SHOWN_TEXTS].tolist(), strict=True)),
            "ess": float(numerics.ess(trace.columns.log_weights[0, -1])) / NUM_TEXTS,
            "log_mean_phi": PooledOverRuns.of(log_phi),
        }


def speed(runs: list[MethodRun], last: int = 20) -> float:
    """Updates a second over the last ones of every method, evaluations left out."""
    seconds = [update.seconds for run in runs for update in run.trainer.history[-last:]]
    return len(seconds) / sum(seconds) if sum(seconds) > 0 else math.nan
