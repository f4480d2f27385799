"""A run by names and numbers: JSON both ways, one form for each meaning, and plain refusals."""

import contextlib
import json
import math

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.errors import PageFormatError, SpecFormatError, TwistFormatError
from tsmc_widgets.targets.description import parse_problem
from tsmc_widgets.widgets.workbench import WorkbenchState

INLINE = {
    "name": "calm",
    "model": "storybook",
    "prompt": "I bought this",
    "num_steps": 5,
    "potential": [
        {"kind": "AvoidsWord", "args": ["broken"]},
        {"kind": "ClassProbability", "model": "storybook/stars", "label": 5, "beta": 2},
    ],
}


def spec(**changes):
    return tw.RunSpec(**{"problem": "rainy-week", **changes})


EVERYTHING = spec(
    method="ctl",
    training=tw.Training(form="table", num_updates=7, learning_rate=1, seed=3),
    proposal="base",
    resampler="residual",
    rule=["always", "never"],
    ess_threshold=0.25,
    num_particles=[2, 8],
    num_runs=9,
    num_exact=11,
    num_samples=13,
    max_draws=99,
    seed=5,
    measures="kl",
    device="cpu",
)


@pytest.mark.parametrize("one", [spec(), EVERYTHING, spec(problem=INLINE)], ids=str)
def test_json_both_ways(one):
    again = tw.RunSpec.from_json(one.to_json())
    assert again == one
    assert again.key == one.key
    assert hash(again) == hash(one)
    assert again.to_json() == one.to_json()
    assert one.problem_name == ("calm" if one.problem == INLINE else "rainy-week")


def test_key_is_stable():
    # Stored results are found by it: a change here means that they are lost.
    assert spec().key == "4ff75d5bd18c8fc0d94700cd24dbb2ca"
    assert EVERYTHING.key == "c2d5ff84a61514fa002f2d99d39a058d"


def test_every_field_changes_the_key():
    given = EVERYTHING.to_dict()
    keys = {EVERYTHING.key}
    changes = {
        "problem": "eos", "method": "rl", "proposal": "twist", "resampler": "systematic",
        "rule": ["ess"], "ess_threshold": 0.5, "num_particles": [2], "num_runs": 10,
        "num_exact": 12, "num_samples": 14, "max_draws": 100, "seed": 6, "measures": ["bounds"],
        "lm": "x", "classifier": "y", "device": "", "dtype": "bfloat16", "twist_power": -0.5,
        "training": {**given["training"], "seed": 4},
    }  # fmt: skip
    assert set(changes) | {"twist", "twist_sha256", "island", "memory_limit"} == set(given)
    for name, value in changes.items():
        keys.add(tw.RunSpec.from_dict({**given, name: value}).key)
    assert len(keys) == 1 + len(changes)
    islands = {spec(measures="runs", island=(i, 2), num_particles=2).key for i in (0, 1)}
    assert len(islands) == 2


def test_one_form_for_each_meaning():
    assert spec(num_particles=4, rule="ess", measures="bounds") == spec(
        num_particles=(4,), rule=["ess"], measures=("bounds",)
    )
    assert spec(problem=tw.load_problem("rainy-week")) == spec()
    assert spec(method="ctl") == spec(method="ctl", training=tw.Training(learning_rate=0))
    assert spec(ess_threshold=1) == spec(ess_threshold=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": "rainy weak"}, "Did you mean 'rainy-week'"),
        ({"problem": 3}, "problem must be a name in PROBLEMS"),
        (
            {"method": "clt"},
            "method must be one of none, look-ahead, optimal, shipped, saved, rejection, best",
        ),
        ({"proposal": "p0"}, "proposal must be one of , base, twist"),
        ({"rule": "sometimes"}, "rule must be one of always, ess, never; got 'sometimes'"),
        ({"measures": ()}, "measures must hold at least one choice"),
        ({"num_particles": 0}, "num_particles must be an integer of at least 1; got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"ess_threshold": 2}, r"ess_threshold must be a number in \[0, 1\]; got 2"),
        ({"training": tw.Training()}, "method 'none' trains nothing"),
        ({"method": "saved"}, "'saved' and twist, the folder"),
        ({"method": "shipped"}, "no twist ships for 'rainy-week'"),
        ({"twist": "somewhere"}, "'saved' and twist, the folder"),
        ({"twist_power": math.inf}, r"twist_power must be a number in \(-inf, inf\)"),
        ({"proposal": "twist"}, "'none' has no twist to propose with"),
        ({"method": "beam"}, "'beam' gives texts and no weights"),
        ({"method": "beam", "measures": "texts", "proposal": "twist"}, "'beam' has no twist"),
        ({"island": (3, 3), "measures": "runs"}, "island must be one of 0 to 2; got 3"),
        ({"island": (1,), "measures": "runs"}, "the i-th of M parts"),
        ({"island": (0, 2), "measures": "bounds"}, "measures must be"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)


@pytest.mark.parametrize(
    ("name", "value"), [("num_updates", 0), ("learning_rate", -1.0), ("learning_rate", math.nan)]
)
def test_training_is_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a.*(of at least 1|in .0, inf)"):
        tw.Training(**{name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ('{"problem": "eos", "num_particle": 3}', "no field 'num_particle': did you mean 'num_pa"),
        ('{"method": "none"}', "needs a problem"),
        (
            '{"problem": "eos", "method": "ctl", "training": {"updates": 3}}',
            "Training has no field 'updates': did you mean 'num_updates'",
        ),
    ],
)
def test_bad_json_is_told(text, message):
    with pytest.raises(SpecFormatError, match=message):
        tw.RunSpec.from_json(text)


ANYTHING = (None, 3, "x", [], {}, [1], [[]], {"a": 1}, True, math.inf, -1, 10**30)


def test_json_of_any_other_shape_has_one_error():
    """Of a spec, and of a saved page."""
    page = json.loads(WorkbenchState(spec=spec()).to_json())
    fields = [(name, value) for name in page["spec"] for value in ANYTHING]
    specs = [page["spec"] | {name: value} for name, value in fields] + list(ANYTHING)
    pages = [page | {name: value} for name in page for value in ANYTHING]
    pages += [page | {"spec": each} for each in specs] + [{"format": page["format"]}]
    for kind, error, whole in (
        (tw.RunSpec, SpecFormatError, specs),
        (WorkbenchState, PageFormatError, pages),
    ):
        for text in (*map(json.dumps, whole), "[" * 10**5):
            with contextlib.suppress(error):
                kind.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"potential": {"kind": "Avoids"}}, "kind of a potential must be one of AvoidsToken"),
        ({"potential": {"kind": "Infilling"}}, "Infilling does not take what is given"),
        ({"potential": {"kind": "Infilling", "num_tokens": 1, "beta": 0}}, "beta of a potential"),
        ({"potential": "contains c"}, "a potential must be described as"),
        ({"potential": []}, "a potential must be described as"),
        ({"num_steps": 0}, "num_steps must be an integer"),
        ({"prompts": "x"}, "no field 'prompts'.*Did you mean 'prompt'"),
        ({"eos": "stop"}, "eos must be one of ignore, absorb"),
        ({"stop": "."}, "give eos='absorb'"),
        ({"power": 0}, "power must be a number"),
        ({"temperature": -1}, "temperature must be a number"),
        ({"top_k": 0}, "top_k must be an integer"),
        ({"model": torch.nn.Linear}, "described by texts, numbers and lists"),
        ({"model": None, "prompt": None}, "the problem lacks model, prompt"),
    ],
)
def test_bad_description_is_told(changes, message):
    given = {name: value for name, value in (INLINE | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        spec(problem=given)


def test_a_power_of_its_own_is_an_argument():
    described = {"kind": "TemperedReward", "reward": "storybook/hostility", "beta": 2}
    target = parse_problem(spec(problem={**INLINE, "potential": described}).problem).target()
    assert target.potential.beta == 2


def test_saved_twist_is_pinned_by_its_weights(tmp_path):
    target = tw.load_problem("rainy-week").target()
    twist = tw.TableHeadTwist(target.lm, num_steps=5, prompt_length=1)
    one = spec(method="saved", twist=tw.save_twist(twist, tmp_path / "twist", target=target))
    card = json.loads((tmp_path / "twist" / "twist.json").read_text())
    assert one.twist_sha256 == card["weights_sha256"]
    assert tw.execute(one)
    with torch.no_grad():
        next(iter(twist.parameters())).add_(1)
    tw.save_twist(twist, tmp_path / "twist", target=target)
    with pytest.raises(TwistFormatError, match="other weights"):
        tw.execute(one)
    assert tw.execute(tw.RunSpec.from_dict({**one.to_dict(), "twist_sha256": ""}))
