"""Named problems: each builds, and each toy teaches what it says that it teaches."""

import math

import pytest
import torch
from targets.toys import every

import tsmc_widgets as tw
from tsmc_widgets.errors import BudgetError
from tsmc_widgets.targets.problems import Problem, Problems
from tsmc_widgets.twists.forms import TWIST_FORMS, make_twist

TWINS = [
    "hostile-story", "hostile-story-beta-10", "hostile-story-threshold", "one-star-review",
    "five-star-review", "star-review-conditional", "infilling-15-10", "infilling-2-1",
]  # fmt: skip
TOYS = [
    "rainy-week", "rare-event", "late-evidence", "deceptive-evidence", "eos", "one-token-infilling",
]  # fmt: skip
PAPER = [
    "paper/toxicity-threshold", "paper/toxicity", "paper/sentiment", "paper/infilling-15-10",
    "paper/infilling-2-1", "paper/story-beta-10", "paper/reviews-beta-100",
]  # fmt: skip


def every_text(target):
    return every(target.lm.vocab_size, target.num_steps)


def test_the_names_that_others_rely_on():
    assert set(TWINS + TOYS + PAPER) <= set(tw.PROBLEMS)
    assert all(name == problem.name for name, problem in tw.PROBLEMS.items())
    assert {name for name in tw.PROBLEMS if name.startswith("paper/")} == set(PAPER)


@pytest.mark.parametrize("name", TWINS + TOYS)
def test_problem_is_what_it_says(name):
    problem = tw.load_problem(name)
    target = problem.target()
    assert target.num_steps == problem.num_steps
    assert target.is_conditional == problem.conditional
    assert target.absorbs_eos == (problem.eos == "absorb")
    assert target.lm is problem.target().lm
    assert problem.exact == isinstance(target.lm, tw.TabularLM)
    assert TWIST_FORMS[problem.form].conditional == (problem.conditional and not problem.exact)
    if problem.exact and problem.conditional:
        target = target.condition([0])
    make_twist(problem.form, target)


def test_twins_are_of_each_other():
    for problem in tw.PROBLEMS.values():
        if problem.twin:
            twin = tw.load_problem(problem.twin)
            assert twin.twin == problem.name
            assert twin.conditional == problem.conditional
            assert twin.name.startswith("paper/") != problem.name.startswith("paper/")


@pytest.mark.parametrize("typo", ["hostile story", "Rainy-Week", "infiling-2-1", "paper/toxicty"])
def test_a_near_miss_is_told(typo):
    with pytest.raises(ValueError, match=f"no problem '{typo}'. Did you mean '"):
        tw.load_problem(typo)


def test_a_wild_miss_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no problem 'xyzzy'\. There are hostile-story, "):
        tw.load_problem("xyzzy")


def test_problem_without_a_classifier_refuses_one():
    with pytest.raises(ValueError, match="'rainy-week' reads no classifier"):
        tw.load_problem("rainy-week").target(classifier="storybook/stars")


def test_a_device_goes_to_both_models_which_are_loaded_once():
    target = tw.load_problem("one-star-review").target(device="cpu")
    assert target.potential.label == "1 star"
    other = tw.load_problem("hostile-story").target()
    assert target.lm is other.lm is tw.load_language_model("storybook")


def test_tables_of_problems_are_inert():
    evil = Problem(
        name="<script>alert(1)</script>",
        summary="a & b",
        teaches="<img src=x onerror=alert(1)>",
        model="table",
        prompt="",
        num_steps=1,
        potential=lambda _: tw.Constant(),
    )
    shown = Problems((evil,))._repr_html_()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown
    assert "a &amp; b" in shown
    assert "rainy-week" in repr(tw.PROBLEMS)


@pytest.mark.parametrize("name", [name for name in TOYS if name != "one-token-infilling"])
def test_toy_is_bounded_and_alive(name):
    target = tw.load_problem(name).target()
    log_phi = target.log_phi(every_text(target))
    assert log_phi.max() <= target.potential.log_phi_max
    assert math.isfinite(tw.exact(target).log_z)


def by_hand(target, value):
    symbols = target.lm.symbols
    return [value([symbols[i] for i in row]) for row in every_text(target).tolist()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rainy-week", lambda days: -2.0 * abs(days.count("rain") - 2)),
        ("late-evidence", lambda road: -6.0 if road[-1] in ("meadow", "brook") else 0.0),
        ("deceptive-evidence", lambda way: 2.0 * way.count("glitter") - 2.0 * way.count("mud")),
    ],
)
def test_phi_of_a_toy_by_hand(name, value):
    target = tw.load_problem(name).target()
    assert target.log_phi(every_text(target)).tolist() == by_hand(target, value)


def test_toys_describe_themselves():
    said = [tw.load_problem(name).target().potential.describe() for name in TOYS[2:4]]
    assert said == ["exp(−6 [ends with meadow or brook])", "exp(2 × glitter −2 × mud)"]


def runs_of(target, **way):
    return tw.run_smc(target, num_particles=16, num_runs=400, seed=0, dead_runs="keep", **way)


def test_rare_event_kills_runs_without_a_twist():
    target = tw.load_problem("rare-event").target()
    oracle = tw.exact(target)
    assert math.exp(oracle.log_z) < 1.1e-3
    assert (runs_of(target).log_z == -math.inf).double().mean() > 0.9
    twisted = runs_of(target, twist=oracle.optimal_twist(), proposal=tw.TwistInduced())
    assert (twisted.log_z - oracle.log_z).abs().max() < 1e-10


def test_late_evidence_leaves_weights_equal_until_the_end():
    target = tw.load_problem("late-evidence").target()
    runs = runs_of(target)
    assert (runs.ess[:, :-1] == 16).all()
    # One particle of 16 that took the other road outweighs all the others at once.
    assert runs.ess[:, -1].min() < 2
    assert runs.log_z.std() > 1
    # Roads never meet: after the first step nothing can be mended.
    twist = tw.exact(target).optimal_twist()
    log_psi = twist.log_psi(torch.tensor([[0, 1], [0, 3]]), 1)
    assert log_psi[1, 0] - log_psi[0, 0] == pytest.approx(6.0, abs=1e-12)


def test_deceptive_evidence_makes_looking_at_the_present_worse_than_nothing():
    target = tw.load_problem("deceptive-evidence").target()
    oracle = tw.exact(target)
    rock, glitter = (
        float(oracle.optimal_twist().log_psi(torch.tensor([[0, token]]), 1)) for token in (0, 1)
    )
    assert glitter < rock, "phi of the text so far says 2 nats more, psi* less"
    plain = tw.run_smc(target, num_particles=8, num_runs=2000, seed=0).log_z
    misled = tw.run_smc(
        target, num_particles=8, num_runs=2000, seed=0, twist=tw.LookAheadTwist(target)
    ).log_z
    error = math.hypot(float(plain.std()), float(misled.std())) / 2000**0.5
    assert float(plain.mean() - misled.mean()) > 4.5 * error


def test_eos_ends_texts_early_and_late():
    target = tw.load_problem("eos").target()
    texts = target.texts(tw.exact(target).sample(200, seed=0))
    assert {len(text.split()) for text in texts} == {1, 2, 3, 4, 5, 6}
    assert all("yes" in text.split() for text in texts)


@pytest.mark.slow
def test_threshold_is_rare_and_within_reach():
    target = tw.load_problem("hostile-story-threshold").target()
    with pytest.raises(BudgetError) as error:
        target.exact_samples(1000, seed=5, budget=20_000, progress=False)
    found = error.value.samples
    assert len(found.tokens) >= 4
    assert -8 < found.log_z < -6
