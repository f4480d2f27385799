"""The Python of a spec, executed, gives the very trace of the spec."""

import pytest
import torch
from smc.toys import differing

import tsmc_widgets as tw
from tsmc_widgets.experiments.code import code_of, words_of
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.targets.description import describe_problem
from tsmc_widgets.targets.functions import register_function

STORY = {
    "name": "mine", "model": "storybook", "prompt": "Once upon a time there was a",
    "num_steps": 6, "eos": "absorb",
}  # fmt: skip
EVERY_KIND = [
    {"kind": "AvoidsWord", "args": ["dragon", 'it\'s "so"'], "scope": "full"},
    {"kind": "ContainsWord", "args": ["a", "the"], "beta": 0.5},
    {"kind": "MatchesRegex", "pattern": r"[a-m]{2}\w", "scope": "continuation"},
    {"kind": "ClassProbability", "model": "storybook/stars", "label": 5, "beta": 2.5},
    {"kind": "TemperedReward", "reward": "storybook/hostility", "beta": 0.5},
    {"kind": "RewardThreshold", "reward": "storybook/hostility", "at_most": 3.0},
    {"kind": "Infilling", "num_tokens": 1, "observed": " and", "beta": 2},
    {"kind": "Continuation", "observed": " the"},
    {"kind": "Length", "at_least": 2},
    {"kind": "TextFunction", "function": f"{__name__}:worth", "log_phi_max": 2},
    {"kind": "TextFunction", "function": "of mine", "takes": "texts"},
]


def worth(text):
    return -0.1 * text.count("e")


def of_mine(texts):
    return [0.05 * text.count("a") for text in texts]


SPECS = {
    "named": {"problem": "five-star-review"},
    "look-ahead": {"problem": "five-star-review", "method": "look-ahead", "proposal": "base"},
    "wrong way round": {"problem": "rainy-week", "method": "look-ahead", "twist_power": -0.25},
    "shipped": {"problem": "one-star-review", "method": "shipped", "rule": "always"},
    "optimal": {"problem": "rare-event", "method": "optimal", "rule": "never"},
    "every kind": {"problem": {**STORY, "potential": EVERY_KIND}, "method": "look-ahead"},
    "one factor": {
        "problem": {**STORY, "potential": {"kind": "AvoidsToken", "args": [["a"], [4, 5]]}}
    },
    "a toy in place": {
        "problem": {
            "name": "dry", "model": "table:rainy-week", "prompt": "sun", "num_steps": 4,
            "potential": {"kind": "OfProblem", "problem": "rainy-week", "beta": 2},
        }
    },
    "another model": {"problem": "one-star-review", "lm": "storybook", "device": "cpu"},
    "a text for an observation": {
        "method": "shipped",
        "problem": {
            "name": "infilling-2-1", "model": "storybook", "num_steps": 2,
            "prompt": "Once upon a time there was a",
            "potential": {"kind": "Infilling", "num_tokens": 1, "observed": " girl"},
        },
    },
    "another p0": {
        "method": "look-ahead", "proposal": "twist",
        "problem": {
            "name": "m", "model": "storybook", "prompt": "Once upon a time there was a",
            "num_steps": 5, "potential": {"kind": "ContainsWord", "args": ["fox"]},
            "eos": "absorb", "stop": [".", "the"], "power": 1.5, "temperature": 0.8, "top_p": 0.9,
        },
    },
    "a class for an observation": {
        "problem": describe_problem("star-review-conditional"), "method": "shipped"
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered():
    register_function(worth, name=f"{__name__}:worth")
    register_function(of_mine, name="of mine")


def executed(spec, **options):
    namespace = {}
    exec(code_of(spec, **options), namespace)
    return namespace["trace"]


@pytest.mark.parametrize("name", SPECS)
def test_code_gives_every_column_to_the_byte(name):
    spec = tw.RunSpec(**{"num_particles": 12, "num_runs": 2, "seed": 3, **SPECS[name]})
    shown = start_spec(spec, top_k=2).run()
    again = executed(spec, top_k=2)
    assert differing(again, shown) == []


def test_another_p0_is_said_in_code_and_words():
    spec = tw.RunSpec(**SPECS["another p0"])
    code = code_of(spec)
    assert "lm = tw.Tempered(tw.load_language_model('storybook'), temperature=0.8, top_p=0.9)" in (
        code.replace('"', "'")
    )
    assert "stop=['.', 'the'], power=1.5" in code.replace('"', "'")
    words = words_of(spec)
    assert (words["power"], words["top_p"], words["stop"]) == (1.5, 0.9, [".", "the"])
    assert start_spec(spec).run().info.rules == {"stop": [".", "the"], "power": 1.5}


def test_one_that_only_proposes(tmp_path):
    target = tw.load_problem("rainy-week").target()
    twist = tw.TableHeadTwist(target.lm, num_steps=5, prompt_length=1)
    with torch.no_grad():
        next(iter(twist.parameters())).add_(torch.randn(3))
    twist.method = "dpg"
    folder = tw.save_twist(twist, tmp_path / "it's a twist", target=target)
    spec = tw.RunSpec(
        problem="rainy-week", method="saved", twist=folder, num_particles=6, num_runs=1
    )
    assert differing(executed(spec), start_spec(spec).run()) == []


def test_words_of_a_person_stay_words():
    prompt = '"); import os  # \\'
    problem = {**STORY, "prompt": prompt, "potential": {"kind": "ContainsWord", "args": [prompt]}}
    code = code_of(tw.RunSpec(problem=problem))
    assert compile(code, "pasted", "exec")
    assert code.count(repr(prompt)) == 2


def test_long_products_are_broken_into_lines():
    problem = {**STORY, "potential": EVERY_KIND}
    code = code_of(tw.RunSpec(problem=problem))
    assert max(map(len, code.splitlines())) <= 100
    assert '# "of mine" is a function of the session' in code
