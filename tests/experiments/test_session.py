"""A spec as one run; descriptions with functions, observations and toys' tables."""

import math

import pytest
import torch
from smc.toys import differing_columns

import tsmc_widgets as tw
from tsmc_widgets.experiments.execute import TwistCache, start_spec
from tsmc_widgets.targets.description import named_functions, observation_of, parse_problem
from tsmc_widgets.targets.functions import register_function

RAIN = {
    "name": "rain in place",
    "model": "table:rainy-week",
    "prompt": "sun",
    "num_steps": 5,
    "potential": [{"kind": "OfProblem", "problem": "rainy-week"}],
}


def count_rain(text):
    return 0.5 * text.count("rain")


def rain(*potential, **more):
    return tw.RunSpec(
        problem={**RAIN, "potential": list(potential)},
        **{"num_particles": 16, "num_runs": 3, **more},
    )


def test_a_run_is_what_its_code_says():
    spec = tw.RunSpec(
        problem="rainy-week", method="look-ahead", proposal="base", num_particles=(8, 16),
        rule="always", resampler="residual", num_runs=2, seed=4,
    )  # fmt: skip
    target = tw.load_problem("rainy-week").target()
    by_hand = tw.run_smc(
        target, num_particles=8, num_runs=2, twist=tw.LookAheadTwist(target, seed=4),
        rule="always", resampler="residual", seed=4,
    )  # fmt: skip
    assert differing_columns(start_spec(spec).run(), by_hand) == []


def test_its_log_z_is_what_execute_measures():
    spec = tw.RunSpec(
        problem="rare-event", method="optimal", measures="runs", num_runs=3, num_particles=4
    )
    rows = tw.execute(spec)
    assert [row["value"] for row in rows] == start_spec(spec).run().log_z.tolist()


def test_a_toy_in_place_is_the_toy():
    plain = tw.RunSpec(problem="rainy-week", num_particles=16, num_runs=3)
    assert start_spec(plain).target.lm is start_spec(rain(*RAIN["potential"])).target.lm
    with pytest.raises(ValueError, match="There is no problem 'rain'"):
        tw.RunSpec(problem={**RAIN, "model": "table:rain"})
    with pytest.raises(ValueError, match="is no toy with a table"):
        tw.RunSpec(problem={**RAIN, "model": "table:hostile-story"})


def test_functions_are_named_and_never_followed_unasked():
    name = f"{__name__}:count_rain"
    spec = rain({"kind": "TextFunction", "function": name, "log_phi_max": 3})
    assert tw.RunSpec.from_json(spec.to_json()) == spec
    assert named_functions(spec.problem) == (name,)
    assert named_functions("rainy-week") == ()
    with pytest.raises(ValueError, match=r"JSON alone cannot bring back.*register_function\('"):
        start_spec(spec)
    danger = rain({"kind": "TextFunction", "function": "os:system"})
    with pytest.raises(ValueError, match="if you trust it"):
        start_spec(danger)
    register_function(count_rain, name=name)
    log_phi = start_spec(spec).run().log_phi
    # Its text is the whole one, the prompt included.
    target = tw.Target(
        parse_problem("rainy-week").target().lm,
        tw.TextFunction(count_rain, log_phi_max=3),
        prompt="sun",
        num_steps=5,
    )
    by_hand = tw.run_smc(target, num_particles=16, num_runs=3)
    assert torch.equal(by_hand.log_phi, log_phi)
    assert log_phi.max() > 0


def test_a_function_by_its_place():
    assert register_function("math:log1p") == "math:log1p"
    assert register_function("math:log1p", name="l") == "l"
    for bad, message in [
        ("no_such_module:f", "There is no module"),
        ("math:nothing", "names nothing"),
        ("math", "named by where to import"),
    ]:
        with pytest.raises(ValueError, match=message):
            register_function(bad)
    spec = rain({"kind": "TextFunction", "function": "mine", "takes": "texts"})
    with pytest.raises(ValueError, match=r"register_function\(your_function, name='mine'\)"):
        start_spec(spec)


def test_what_waits_for_an_observation_is_given_it():
    described = {
        "name": "five by condition",
        "model": "storybook",
        "prompt": "I bought this",
        "num_steps": 4,
        "potential": {"kind": "ClassConditional", "model": "storybook/stars",
                      "observed": "5 stars", "beta": 2},
    }  # fmt: skip
    target = parse_problem(described).target()
    assert target.potential.describe() == "p(5 stars | text)^2"
    assert observation_of(described, target.lm) == [4]
    infilling = {"kind": "Infilling", "num_tokens": 2, "observed": " a castle"}
    described = {**described, "potential": [infilling]}
    target = parse_problem(described).target()
    assert target.potential.describe() == 'p(" a castle" | text)'
    assert observation_of(described, target.lm) == target.lm.encode(" a castle")
    assert observation_of("rainy-week", target.lm) is None
    with pytest.raises(ValueError, match="waits for an observation"):
        start_spec(tw.RunSpec(problem="star-review-conditional"))


def test_conditional_twists_that_ship_are_conditioned():
    problem = {
        "name": "star-review-conditional", "model": "storybook", "prompt": "I bought this",
        "num_steps": 10,
        "potential": {"kind": "ClassConditional", "model": "storybook/stars",
                      "observed": "1 star"},
    }  # fmt: skip
    shipped = tw.RunSpec(problem=problem, method="shipped", num_particles=8, num_runs=1)
    session = start_spec(shipped)
    target = session.target
    twist = tw.load_twist("star-review-conditional", target.lm).condition([0])
    by_hand = tw.run_smc(target, num_particles=8, twist=twist, proposal=tw.TwistInduced())
    assert differing_columns(session.run(), by_hand) == []
    named = tw.RunSpec(
        problem=problem, method="saved", twist="star-review-conditional", num_particles=8,
        num_runs=1,
    )  # fmt: skip
    assert named.twist_sha256 == shipped.twist_sha256
    assert differing_columns(start_spec(named).run(), by_hand) == []


def test_a_power_of_the_twist():
    spec = tw.RunSpec(
        problem="rainy-week", method="look-ahead", twist_power=-0.5, num_particles=8, num_runs=1
    )
    session = start_spec(spec)
    assert session.config.twist.beta == -0.5
    tokens = torch.tensor([[0, 0, 1, 2, 2, 0]])
    plain = tw.LookAheadTwist(session.target, seed=0).log_psi(tokens, 1)
    assert torch.equal(session.config.twist.log_psi(tokens, 1), -0.5 * plain)
    assert math.isfinite(session.run().log_z)


def test_one_learned_by_dpg_only_proposes_whatever_its_power(tmp_path):
    target = tw.load_problem("rainy-week").target()
    twist = tw.TableHeadTwist(target.lm, num_steps=5, prompt_length=1)
    twist.method = "dpg"
    tw.save_twist(twist, tmp_path / "dpg", target=target)
    for power in (1.0, 0.5):
        spec = tw.RunSpec(
            problem="rainy-week", method="saved", twist=tmp_path / "dpg", twist_power=power
        )
        config = start_spec(spec).config
        assert config.twist is None
        assert config.proposal.twist.proposal_only
        assert config.rule.describe() == "never"


def test_twists_that_do_not_depend_on_phi_are_kept():
    twists = TwistCache()
    first = tw.RunSpec(problem="one-star-review", method="shipped", num_particles=4, num_runs=1)
    like = {
        "name": "like it", "model": "storybook", "prompt": "I bought this", "num_steps": 10,
        "potential": {"kind": "AvoidsWord", "args": ["broken"]},
    }  # fmt: skip
    nearest = tw.RunSpec(
        problem=like, method="saved", twist="one-star-review", num_particles=4, num_runs=1
    )
    session = start_spec(nearest, twists=twists)
    session.run()
    softer = nearest.with_(
        problem={**like, "potential": {"kind": "AvoidsWord", "args": ["broken", "broke"]}}
    )
    again = start_spec(softer, twists=twists, recording=session.recording)
    assert again.config.twist is session.config.twist
    assert differing_columns(again.run(), start_spec(softer).run()) == []
    assert again.reweighed
    assert start_spec(first, twists=twists).config.twist is not session.config.twist
    other = first.with_(method="look-ahead")
    one, two = (start_spec(other, twists=twists).config.twist for _ in range(2))
    assert one is not two


@pytest.mark.parametrize("method", ["ctl", "beam"])
def test_what_is_no_run_is_refused(method):
    measures = "texts" if method == "beam" else "bounds"
    with pytest.raises(ValueError, match="no single run with weights"):
        start_spec(tw.RunSpec(problem="rainy-week", method=method, measures=measures))
