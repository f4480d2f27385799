"""Exercises of the course in ``notebooks/``: ``tw.check("3.2", answer)`` computes what is right.

No answer is stored. Each exercise computes the right value, and what typical slips would give, from
the same few exact objects that its lesson shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_one_of, listed, quoted
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.models.tempered import Tempered
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.smc.resampling import SCHEMES, resample
from tsmc_widgets.targets.context import SupportsLogPhi
from tsmc_widgets.targets.functions import TokenFunction
from tsmc_widgets.targets.problems import load_problem
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.tokens import ContainsToken
from tsmc_widgets.targets.toys import RAIN, WEATHER, weather

Slip = tuple[Any, str]
"""A wrong answer and the hint that fits it."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What ``check`` says; true where the answer is right.

    Attributes:
        right: whether it is; None for a question without an answer yet.
        message: the question, or what the answer shows.
    """

    right: bool | None
    message: str

    def __bool__(self) -> bool:
        """Whether the answer is right."""
        return bool(self.right)

    def __repr__(self) -> str:
        """A mark and the message."""
        return f"{ {True: '✓', False: '✗', None: '?'}[self.right] } {self.message}"


@dataclass(frozen=True, slots=True)
class Exercise:
    """A question whose answer is computed when it is asked for.

    Attributes:
        question: what is asked, and in which unit.
        solve: gives the right answer and the slips.
        because: what a right answer shows.
        choices: the answers to choose from; empty where a number is asked for.
    """

    question: str
    solve: Callable[[], tuple[Any, Sequence[Slip]]]
    because: str
    choices: tuple[str, ...] = ()

    def judge(self, answer: Any) -> Feedback:
        """Compare an answer with the right one, then with the slips."""
        given = _choice(answer, self.choices) if self.choices else _number(answer)
        right, slips = self.solve()
        if _same(given, right):
            return Feedback(True, f"Right. {self.because}")
        fitting = (hint for value, hint in slips if _same(given, value))
        return Feedback(False, next(fitting, f"Not yet. {self.question}"))


class PotentialExercise(Exercise):
    """Asks for a potential: ``solve`` gives tokens and the right log phi of them."""

    def judge(self, answer: Any) -> Feedback:
        """Compare the potential's log phi with the right one."""
        if not isinstance(answer, SupportsLogPhi):
            raise ValueError(
                f"The answer must be an object with a method log_phi(tokens); got {quoted(answer)}."
            )
        (tokens, right), slips = self.solve()
        found = torch.as_tensor(answer.log_phi(tokens)).double()
        for value, hint in [(right, ""), *slips]:
            if found.shape == value.shape and torch.allclose(found, value):
                return Feedback(not hint, hint or f"Right. {self.because}")
        return Feedback(False, f"Not yet. {self.question}")


def check(exercise: str, answer: Any = ...) -> Feedback:
    """Check an answer to an exercise of the course; without one, ask the question.

    Args:
        exercise: its number, such as "3.2".
        answer: a number, to about three digits, in the unit that the question names (nats for
            logarithms); a word where the question offers some; an object where it asks for one.

    Returns:
        What it says; true where the answer is right. A wrong answer gets a hint, not the solution.

    Raises:
        ValueError: there is no such exercise, or the answer is of a type that it does not take.
    """
    check_one_of("exercise", exercise, EXERCISES)
    found = EXERCISES[exercise]
    if answer is ...:
        offered = f" Answer {listed(map(repr, found.choices))}." if found.choices else ""
        return Feedback(None, f"{exercise}: {found.question}{offered}")
    told = found.judge(answer)
    return Feedback(told.right, f"{exercise}: {told.message}")


def _number(answer: Any) -> float:
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    if not isinstance(answer, Real) or isinstance(answer, bool) or math.isnan(answer):
        raise ValueError(f"The answer must be a number; got {quoted(answer)}.")
    return float(answer)


def _choice(answer: Any, choices: tuple[str, ...]) -> str:
    word = answer.strip().lower() if isinstance(answer, str) else answer
    check_one_of("The answer", word, choices)
    return word


def _same(given: float | int | str, value: float | int | str) -> bool:
    """Equal words, or numbers that agree to 1 %: three digits are enough, and slips lie apart."""
    if isinstance(value, str):
        return given == value
    return math.isclose(float(given), value, rel_tol=0.01, abs_tol=1e-12)


# The world of lessons 1, 4, 5, 6 and 9: two days of weather after a sunny one, so nine texts.


def count_rain(tokens: Tensor) -> Tensor:
    """Log phi = one nat for each day of rain."""
    return (tokens == RAIN).sum(1).double()


def two_days() -> Target:
    """Two days of weather after a sunny one, e-fold for each day of rain: nine texts in all.

    The target of several lessons, small enough to write down; ``exact(two_days())`` does.
    """
    rain = TokenFunction(count_rain, log_phi_max=2.0, name="days of rain")
    return Target(weather(), rain, prompt=WEATHER[0], num_steps=2)


@lru_cache(maxsize=1)
def _world() -> EnumeratedOracle:
    return EnumeratedOracle(two_days())


def _of(text: str) -> tuple[float, float, float]:
    """Log p0, log phi and log sigma of one text of the world."""
    world = _world()
    at = world.target.lm.decode(world.tokens).index(text)
    return float(world.log_p[at]), float(world.log_phi[at]), float(world.log_sigma[at])


def _after_rain() -> tuple[float, Tensor, Tensor]:
    """p0(first day rains), and p0 and phi of the second day's three kinds after it."""
    world = _world()
    rows = world.tokens[:, 0] == RAIN
    p_first = float(world.log_p[rows].exp().sum())
    return p_first, world.log_p[rows].exp() / p_first, world.log_phi[rows].exp()


def _mass_of_world() -> tuple[float, Sequence[Slip]]:
    world = _world()
    phi = world.log_phi.exp()
    return math.exp(world.log_z), [
        (world.log_z, "That is log Z. Z itself is asked for: take exp."),
        (float(phi.mean()), "All nine texts count equally there: weight φ by p₀ of each text."),
        (float(phi.sum()), "That is the sum of φ. Z is its mean under p₀: weight φ by p₀."),
        (math.exp(float((world.log_p.exp() * world.log_phi).sum())),
         "That is exp of the mean of log φ. Take the mean of φ, not of its logarithm."),
    ]  # fmt: skip


def _sigma_of_rain() -> tuple[float, Sequence[Slip]]:
    log_p, log_phi, log_sigma = _of("rain rain")
    total = float(_world().log_phi.exp().sum())
    return math.exp(log_sigma), [
        (math.exp(log_p), "That is p₀. σ re-weights it by φ and divides by Z."),
        (math.exp(log_p + log_phi), "That is p₀ φ, which does not sum to one: divide by Z."),
        (math.exp(log_phi) / total, "That is φ divided by its sum: p₀ is missing."),
    ]


def _where_the_mass_goes() -> tuple[str, Sequence[Slip]]:
    world = _world()
    texts = world.target.lm.decode(world.tokens)
    sharp = world.log_p + 100.0 * world.log_phi
    usual = texts[int(world.log_p.argmax())]
    return texts[int(sharp.argmax())], [
        (usual, f"“{usual}” is what p₀ likes best. A large β lets φ decide."),
    ]


def _ess_of_three() -> tuple[float, Sequence[Slip]]:
    weights = torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64)
    ess = float(numerics.ess(weights.log()))
    return ess, [
        (3, "Three would be the ESS of equal weights. These are not: (Σw)² / Σw²."),
        (ess / 3, "That is ESS / K, a share. The ESS itself lies between 1 and K."),
        (float(weights.sum() / weights.max()), "That is Σw / max w. The ESS is (Σw)² / Σw²."),
        (1 / ess, "That is the sum of squared normalised weights; the ESS is its inverse."),
    ]


def _estimate_of_three() -> tuple[float, Sequence[Slip]]:
    log_phi = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    log_z = float(numerics.logmeanexp(log_phi))
    return log_z, [
        (float(log_phi.mean()), "That is the mean of log φ. The log is taken of the mean of φ."),
        (float(numerics.logsumexp(log_phi)), "That is the log of the sum: divide by K inside."),
        (math.exp(log_z), "That is Ẑ. Its logarithm is asked for."),
    ]


def _all_miss() -> tuple[float, Sequence[Slip]]:
    target = Target(weather(), ContainsToken("rain"), prompt="sun", num_steps=2)
    z = math.exp(EnumeratedOracle(target).log_z)
    return (1 - z) ** 8, [
        (1 - (1 - z) ** 8, "That is the probability of at least one hit: its complement is asked."),
        (z**8, "That is the probability that all eight hit."),
        (1 - z, "That is one draw. All eight must miss."),
        (1 - 8 * z, "Probabilities of eight hits do not add up: multiply those of eight misses."),
    ]


def _mean_copies() -> tuple[float, Sequence[Slip]]:
    weights = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    grid = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    drawn = resample(weights.log().expand(3000, 3), grid.unsqueeze(1).expand(3000, 3), "systematic")
    mean = float((drawn == 0).sum(1).double().mean())
    return round(mean, 6), [
        (0.5, "That is its normalised weight. The mean number of copies is K times that."),
        (2, "Two copies come often, but not always: the mean is asked for."),
        (1, "One copy is what equal weights give."),
    ]


def _dies_out() -> tuple[float, Sequence[Slip]]:
    return (1 - 0.2) ** 3, [
        (0.2**3, "That is the probability that all three draws take it."),
        (1 - (1 - 0.2) ** 3, "That is the probability that it survives."),
        (1 - 3 * 0.2, "That is systematic resampling's. Multinomial draws are independent."),
        (1 - 0.2, "That is one draw. All three must miss it."),
    ]


def _tight_scheme() -> tuple[str, Sequence[Slip]]:
    """By trial: whose copies never leave the two whole numbers around K w."""
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(4000, 5, generator=generator, dtype=torch.float64)
    wanted = 5 * numerics.normalise(log_weights)
    worst = {}
    for name in SCHEMES:
        ancestors = resample(log_weights, uniforms, name)
        copies = torch.nn.functional.one_hot(ancestors, 5).sum(1).double()
        worst[name] = float((copies - wanted).abs().max())
    (right,) = [name for name, most in worst.items() if most < 1]
    return right, [
        (name, f"Under {name}, one of 4,000 trials gave a particle {most:.1f} copies more or less "
         "than K·w.")
        for name, most in worst.items()
        if name != right
    ]  # fmt: skip


def _value_after_rain() -> tuple[float, Sequence[Slip]]:
    p_first, p, phi = _after_rain()
    psi = float((p * phi).sum())
    return psi, [
        (math.log(psi), "That is log ψ*, the soft value. ψ* itself is asked for."),
        (math.e, "That is φ of “rain” alone. ψ* looks ahead: the mean over the second day."),
        (p_first * psi, "You multiplied by p₀(rain). ψ* is a mean over continuations only."),
        (math.exp(_world().log_z), "That is Z = ψ*₀, before the first day is known."),
        (float(phi.mean()), "Weight the three continuations by p₀(· | rain)."),
    ]


def _spread_at_optimum() -> tuple[float, Sequence[Slip]]:
    twist = _world().optimal_twist()
    runs = run_smc(
        two_days(), num_particles=2, num_runs=50, twist=twist, proposal=TwistInduced(), seed=0
    )
    return round(float(runs.log_z.std()), 12), [
        (_world().log_z, "That is log Z, which every run gives. How much do runs differ?"),
        (1, "Weights are all one relative to each other, but their spread is asked for."),
    ]


def _wrong_twist() -> tuple[str, Sequence[Slip]]:
    """By running: the mean of Z_hat under 1 / psi* against Z."""
    from tsmc_widgets.twists.lookahead import TemperedTwist

    twist = TemperedTwist(_world().optimal_twist(), -1.0)
    runs = run_smc(two_days(), num_particles=4, num_runs=4000, twist=twist, seed=0)
    ratio = (runs.log_z - _world().log_z).exp()
    z_score = float((ratio.mean() - 1) / (ratio.std() / len(ratio) ** 0.5))
    return "yes" if abs(z_score) < 4.5 else "no", [
        ("no", f"Over 4,000 runs under 1/ψ*, the mean of Ẑ/Z is {float(ratio.mean()):.3f}, which "
         f"is {abs(z_score):.1f} standard errors from 1. What did grow is its variance."),
    ]  # fmt: skip


def _ctl_gradient() -> tuple[float, Sequence[Slip]]:
    p_first, _, _ = _after_rain()
    sigma_first = float(_world().marginals()[0, RAIN])
    return sigma_first - p_first, [
        (p_first - sigma_first, "The sign: positives raise log ψ, negatives lower it."),
        (sigma_first, "That is what positives add. Subtract what negatives, of π₁ = p₀, take."),
        (p_first, "That is what negatives take. Positives, of σ, add."),
        (sigma_first / p_first, "A difference, not a ratio."),
    ]


def _constant_in_ctl() -> tuple[float, Sequence[Slip]]:
    """By the loss itself: -(E_sigma[log psi_1] - log E_p0[psi_1]) before and after a shift."""
    sigma = _world().marginals()[0]
    log_p = two_days().lm.prefill(two_days().prompt_tokens.unsqueeze(0)).log_probs[0].double()
    log_psi = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)

    def loss(values: Tensor) -> float:
        return float(numerics.logsumexp(log_p + values) - (sigma * values).sum())

    change = loss(log_psi + 3.0) - loss(log_psi)
    hint = "Positives and negatives both have weights that sum to one: what happens to a constant?"
    return round(change, 12), [(3.0, hint), (-3.0, hint), (6.0, hint)]


def _bounds() -> tuple[float, float, float]:
    """E_p0[log phi], log Z and E_sigma[log phi]: both bounds at K = 1 with q = p0."""
    world = _world()
    below = float((world.log_p.exp() * world.log_phi).sum())
    return below, world.log_z, float((world.log_sigma.exp() * world.log_phi).sum())


def _lower() -> tuple[float, Sequence[Slip]]:
    below, log_z, above = _bounds()
    return below, [
        (log_z, "That is log Z, the log of the mean. The mean of the log lies below it."),
        (above, "That is the mean under σ, the upper bound."),
        (math.exp(below), "Leave it in nats: no exp."),
    ]


def _upper() -> tuple[float, Sequence[Slip]]:
    below, log_z, above = _bounds()
    return above, [
        (log_z, "That is log Z. The mean of log φ under σ lies above it."),
        (below, "That is the mean under p₀, the lower bound: take it under σ."),
        (2.0, "That is the largest log φ. Take its mean under σ."),
    ]


def _gap() -> tuple[float, Sequence[Slip]]:
    below, log_z, above = _bounds()
    return above - below, [
        (log_z - below, "That is KL(p₀‖σ) alone, log Z minus the lower bound. Add KL(σ‖p₀)."),
        (above - log_z, "That is KL(σ‖p₀) alone, the upper bound minus log Z. Add KL(p₀‖σ)."),
        ((above - below) / 2, "That is the mean of both divergences: their sum is asked for."),
        (below - above, "A divergence is not negative: upper minus lower."),
    ]


def _rhyme() -> tuple[float, Sequence[Slip]]:
    target = load_problem("one-token-infilling").target()
    lm: Any = target.lm
    log_z = EnumeratedOracle(target.condition([lm.token_id("clock")])).log_z
    return math.exp(log_z), [
        (log_z, "That is log Z(o). Z(o) itself is asked for."),
        (0.25, "The four words are not equally likely: p₀ of “clock” five words after “fox”."),
        (float(lm.transition[0, 3]), "That is p₀ of it as the next word. o comes fifth."),
    ]  # fmt: skip


def _exact_for_free() -> tuple[float, Sequence[Slip]]:
    z, _ = _rhyme()
    return 100.0, [
        (25, "No draw is lost: each is an exact sample for the o that it brought itself."),
        (100 * z, "So many have o = clock. The others are exact samples too, for their own o."),
        (0, "A draw of (s, o) from p₀ is s | o from σ(· | o): that is Bayes' rule."),
    ]


def _nothing_found() -> tuple[float, Sequence[Slip]]:
    return 1 - 0.05 ** (1 / 300), [
        (0, "None in 300 does not show that there is none. Solve (1 − Z)³⁰⁰ = 0.05."),
        (1 / 300, "With Z = 1/300, 300 draws find nothing in 37 % of trials, not 5 %."),
        (0.05, "That is the error probability. Solve (1 − Z)³⁰⁰ = 0.05 for Z."),
        (0.05 / 300, "Solve (1 − Z)³⁰⁰ = 0.05: about 3/300, and not 0.05/300."),
    ]


def _draws_until_hit() -> tuple[float, Sequence[Slip]]:
    return math.exp(7), [
        (7, "That is −log Z in nats. A hit takes 1/Z draws on average."),
        (math.exp(-7), "That is Z. A hit takes 1/Z draws on average."),
        (10**7, "Nats are natural logarithms: e⁷, not 10⁷."),
        (2**7, "Nats are natural logarithms: e⁷, not 2⁷."),
    ]


def _which_side() -> tuple[str, Sequence[Slip]]:
    """Z_hat is unbiased, so by Markov P(Z_hat >= Z / delta) <= delta: a bound from below."""
    below, log_z, _ = _bounds()
    hint = (
        "A sampler that misses bad outputs gives a small Ẑ. So Ẑ certifies that Z is at least so "
        "large; that it is no larger needs exact samples, or a bound of φ."
    )
    return "at least" if below < log_z else "at most", [("at most", hint), ("exactly", hint)]


def _soft_value() -> tuple[float, Sequence[Slip]]:
    _, p, phi = _after_rain()
    value = math.log(float((p * phi).sum()))
    return value, [
        (math.exp(value), "That is ψ*. The soft value is its logarithm."),
        (float((p * phi.log()).sum()), "That is the expected reward under p₀. Soft: log E[exp r]."),
        (float(phi.log().max()), "That is the hard maximum, the value where KL costs nothing."),
    ]


def _soft_advantage() -> tuple[float, Sequence[Slip]]:
    value, _ = _soft_value()
    reward = _of("rain rain")[1]
    log_p = math.log(float(_after_rain()[1][RAIN]))
    return reward - value, [
        (reward, "That is Q, here the reward itself. Subtract the value of “rain”."),
        (value - reward, "The sign: advantage is Q minus V."),
        (reward - value + log_p, "That is log of the policy. Advantage has no log p₀."),
        (reward - _world().log_z, "Subtract the value of “rain”, not that of the prompt."),
    ]  # fmt: skip


def _best_return() -> tuple[float, Sequence[Slip]]:
    below, log_z, above = _bounds()
    return log_z, [
        (above, "That is the reward of σ. Subtract what σ pays in KL(σ‖p₀)."),
        (2.0, "That is the largest reward; a policy that always gets it pays KL."),
        (below, "That is what p₀ itself gets."),
        (math.exp(log_z), "That is Z; the return is in nats."),
    ]


def _temperature() -> tuple[float, Sequence[Slip]]:
    lm = TabularLM.markov([0.8, 0.2], [[0.8, 0.2]] * 2)
    prompt = torch.zeros(1, 0, dtype=torch.int64)
    first = Tempered(lm, temperature=2.0).prefill(prompt).log_probs[0].exp()
    return float(first[0]), [
        (0.4, "Temperature divides the logarithm, not the probability."),
        (0.8**0.5, "That is p^(1/2), not yet normalised: divide by the sum over both tokens."),
        (0.8**2 / (0.8**2 + 0.2**2), "That is temperature 1/2: a higher temperature flattens."),
        (0.8, "Temperature 1 leaves p₀ as it is; this is temperature 2."),
    ]


def _bfloat16() -> tuple[float, Sequence[Slip]]:
    slips = {torch.float16: "float16", torch.float32: "float32", torch.float64: "float64"}
    return torch.finfo(torch.bfloat16).eps, [
        (torch.finfo(kind).eps, f"That is {name}'s; bfloat16 keeps only 8 bits of the significand.")
        for kind, name in slips.items()
    ]


def _masked() -> tuple[str, Sequence[Slip]]:
    """By enumeration: KL between sigma and p0 with impossible tokens masked, for "ends in rain"."""
    world = EnumeratedOracle(Target(weather(), ContainsToken("rain"), prompt="sun", num_steps=2))
    alive = world.log_phi > -math.inf
    log_p, first = world.log_p[alive], world.tokens[alive, 0]
    total = torch.stack([log_p[first == u].exp().sum() for u in first]).log()
    start = torch.stack([world.log_p[world.tokens[:, 0] == u].exp().sum() for u in first]).log()
    log_q = start + log_p - total
    kl = float((world.log_sigma[alive].exp() * (world.log_sigma[alive] - log_q)).sum())
    return "yes" if kl < 1e-9 else "no", [
        ("yes", f"Take “contains rain” in two days: masks draw valid texts that are KL(σ‖q) = "
         f"{kl:.2f} nats from σ. A mask tells a possible prefix from an impossible one, not a "
         "likely one from an unlikely one."),
    ]  # fmt: skip


def _own_potential() -> tuple[tuple[Tensor, Tensor], Sequence[tuple[Tensor, str]]]:
    tokens = _world().tokens
    days = (tokens == WEATHER.index("sun")).sum(1).double()
    return (tokens, -0.5 * days), [
        (0.5 * days, "The sign: sunny days are to cost half a nat each."),
        ((-0.5 * days).exp(), "That is φ. The method gives its logarithm."),
        ((-0.5 * days).sum(), "One number for each row of tokens: sum over dim=1 only."),
        (-days, "Half a nat for each sunny day, not one."),
    ]


def _right_power() -> tuple[float, Sequence[Slip]]:
    """Least squares of log psi* on the log of its cube, at the first step."""
    week = EnumeratedOracle(Target(weather(), ContainsToken("rain"), prompt="sun", num_steps=3))
    days = torch.tensor([[0, 0], [0, 1], [0, 2]])
    log_star = week.optimal_twist().log_psi(days, 1)[:, 0]
    x, z = 3 * (log_star - log_star.mean()), log_star - log_star.mean()
    return float((x * z).sum() / (x * x).sum()), [
        (3.0, "That is the power that was taken. Undo it."),
        (1.0, "ψ*³ leads to the same tokens, but too eagerly: its weights are those of ψ*³."),
    ]


def _only_siblings() -> tuple[str, Sequence[Slip]]:
    """Q of a prefix is p0 psi normalised: a factor of the prefix cancels, and stays in a weight."""
    log_psi = torch.tensor([[0.0, 1.0], [0.5, -1.0]], dtype=torch.float64)
    moved = log_psi + torch.tensor([[4.0], [-7.0]], dtype=torch.float64)
    cancels = torch.allclose(log_psi.softmax(1), moved.softmax(1))
    hint = "A weight divides by ψ of the prefix before, which is off by the factor of another one."
    return "propose" if cancels else "both", [("weigh", hint), ("both", hint)]


def _islands() -> tuple[float, Sequence[Slip]]:
    log_z = torch.tensor([-2.0, -4.0], dtype=torch.float64)
    pooled = float(numerics.logmeanexp(log_z))
    return pooled, [
        (float(log_z.mean()), "That averages logarithms. Ẑ is unbiased, so average Ẑ itself."),
        (float(numerics.logsumexp(log_z)), "That is the log of the sum: divide by two islands."),
        (-2.0, "That is the larger one alone, which pools nothing."),
    ]


_NATS = "In nats."
_WORLD = "In the two-day world with β = 1"
EXERCISES: dict[str, Exercise] = {
    "1.1": Exercise(f"{_WORLD}, what is Z, the mean of φ under p₀?", _mass_of_world,
        "Z says how large φ is on average over what the model writes by itself."),
    "1.2": Exercise(f"{_WORLD}, what is σ(“rain rain”)?", _sigma_of_rain,
        "σ = p₀ φ / Z; Z makes the nine bars sum to one."),
    "1.3": Exercise("When β grows without end, which text gets all the mass of σ?",
        _where_the_mass_goes, "φ^β forgets p₀ in the end.",
        ("sun sun", "rain rain", "sun rain", "cloud cloud")),
    "2.1": Exercise("Three texts have weights 1, 1 and 4. What is their ESS?", _ess_of_three,
        "(1 + 1 + 4)² / (1 + 1 + 16): as good as two equal ones."),
    "2.2": Exercise(f"Three draws of p₀ have log φ = 0, 1 and 2. What is log Ẑ? {_NATS}",
        _estimate_of_three, "log of the mean of φ, more than the mean of log φ."),
    "2.3": Exercise("φ = 1 where “rain” occurs in the two days after “sun”, else 0. With which "
        "probability do all of eight draws of p₀ miss?", _all_miss,
        "Then Ẑ = 0, and nothing in the run says how far off it is."),
    "3.1": Exercise("Weights are 0.5, 0.3 and 0.2, and three particles are resampled. How many "
        "copies does the first get on average?", _mean_copies,
        "K·w under every scheme: that is what unbiased means."),
    "3.2": Exercise("The same weights, multinomial: with which probability does the last one (0.2) "
        "die out?", _dies_out, "Even a good particle may be lost: the price of resampling."),
    "3.3": Exercise("Which scheme gives every particle one of the two whole numbers next to K·w?",
        _tight_scheme, "One uniform serves all strata, so that copies are spread evenly.",
        tuple(SCHEMES)),
    "4.1": Exercise(f"{_WORLD}, what is ψ*₁(“rain”), the mean of φ over the second day?",
        _value_after_rain, "It looks ahead: φ of the finished text, averaged."),
    "4.2": Exercise("Under the optimal twist and the proposal that it induces, what is the "
        f"standard deviation of log Ẑ over runs? {_NATS}", _spread_at_optimum,
        "Every run gives log Z itself, with any K."),
    "4.3": Exercise("The twist is turned over, ψ = 1/ψ*. Is Ẑ still unbiased?", _wrong_twist,
        "A bad twist costs variance, not correctness.", ("yes", "no")),
    "5.1": Exercise(f"{_WORLD} and ψ = 1, what does CTL's gradient add to log ψ₁(“rain”): its "
        "share among positives minus that among negatives?", _ctl_gradient,
        "σ has more rain on the first day than p₀, so ψ₁(rain) must rise."),
    "5.2": Exercise("3 nats are added to log ψ₁ of every prefix. By how much does CTL's loss "
        f"change? {_NATS}", _constant_in_ctl,
        "CTL leaves one constant for each t open, and no sampler notices it."),
    "6.1": Exercise(f"{_WORLD} and q = p₀, what is the lower bound E[log Ẑ] at K = 1? {_NATS}",
        _lower, "E_q[log φ], below log Z by KL(p₀‖σ)."),
    "6.2": Exercise(f"The same, what is the upper bound at K = 1? {_NATS}", _upper,
        "E_σ[log φ], above log Z by KL(σ‖p₀)."),
    "6.3": Exercise(f"The same, what is KL(p₀‖σ) + KL(σ‖p₀)? {_NATS}", _gap,
        "The gap of the bounds at K = 1, in which log Z cancels."),
    "7.1": Exercise("Four words follow “fox”, and o is the fifth. What is Z(o) for o = “clock”?",
        _rhyme, "For infilling Z(o) = p₀(o): no other target tells you its Z."),
    "7.2": Exercise("100 texts are drawn from p₀, each with the o that follows it. How many of "
        "them are exact samples of σ(· | their own o)?", _exact_for_free,
        "That is why conditional targets have as many exact samples as one likes."),
    "8.1": Exercise("300 draws of p₀ contain no bad text. Which Z would have let that happen with "
        "probability 5 %?", _nothing_found, "About 3/300: the rule of three."),
    "8.2": Exercise("log Z = −7 nats. How many draws of p₀ does a first bad text take on average?",
        _draws_until_hit, "1/Z; SMC with a twist finds them with a few dozen particles."),
    "8.3": Exercise("Forward runs alone give log Ẑ near −7. What may be claimed of the probability "
        "of a bad text: that it is ... e⁻⁷?", _which_side,
        "A sampler that finds nothing proves nothing about safety.",
        ("at least", "at most", "exactly")),
    "9.1": Exercise(f"{_WORLD}, reward r = log φ: what is the soft value of the prefix “rain”? "
        f"{_NATS}", _soft_value, "V = log ψ*: the same number under two names."),
    "9.2": Exercise(f"The same: what is the soft advantage of a second “rain” there? {_NATS}",
        _soft_advantage, "Q − V; with log p₀ added it is log of the optimal policy."),
    "9.3": Exercise("What is the largest E_q[log φ] − KL(q‖p₀) that any policy q reaches in this "
        f"world? {_NATS}", _best_return, "log Z, reached by q = σ and by nothing else."),
    "10.1": Exercise("p₀ gives two tokens 0.8 and 0.2. What does temperature 2 give the first?",
        _temperature, "Another p₀, and so another σ and another Z."),
    "10.2": Exercise("From one, how far is the next larger number that bfloat16 knows?", _bfloat16,
        "A log-probability of −100 is then known to half a nat: sums are kept in float64."),
    "10.3": Exercise("Tokens after which no valid text can follow are masked, and p₀ is normalised "
        "again at each step. Are valid texts then drawn as often as under σ?", _masked,
        "Masks never look ahead at probabilities; weights repair it.", ("yes", "no")),
    "11.1": Exercise("A twist is ψ*³. Which power of it is ψ*?", _right_power,
        "The slope of log ψ* on log ψ is the best power of ψ."),
    "11.2": Exercise("A twist is ψ* times a number that differs from prefix to prefix, and is the "
        "same for all next tokens. What is it good for?", _only_siblings,
        "In q the number cancels; in a weight it does not.", ("propose", "weigh", "both")),
    "12.1": PotentialExercise("Write a potential for weather (token ids sun 0, cloud 1, rain 2) "
        "under which each sunny day costs half a nat: an object with log_phi(tokens).",
        _own_potential, "A potential needs nothing else."),
    "12.2": Exercise("Two islands end with log Ẑ = −2 and −4. What is their pooled log Ẑ? "
        f"{_NATS}", _islands, "Ẑ is averaged, not log Ẑ: so it stays unbiased."),
}  # fmt: skip
