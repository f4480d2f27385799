"""Potentials and problems as JSON and code, and back: what they were, to the byte."""

import json
from functools import reduce
from operator import mul

import pytest
import torch
from smc.toys import differing
from targets.toys import Stars, every, letters

import tsmc_widgets as tw
from tsmc_widgets.experiments.code import code_of as code_of_spec
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.targets.description import (
    describe_potential,
    describe_problem,
    formula_of,
    parse_potential,
    parse_problem,
    prompt_text,
    with_text,
)
from tsmc_widgets.targets.protocol import KINDS, BoundOnly, code_of

HERE = [name for name, p in tw.PROBLEMS.items() if p.model in ("storybook", "table")]


@pytest.mark.parametrize("name", [n for n in HERE if not tw.load_problem(n).conditional])
def test_the_run_is_the_same_to_the_byte(name):
    how = {"num_particles": 6, "num_runs": 2}
    named = start_spec(tw.RunSpec(problem=name, **how)).run()
    spec = tw.RunSpec(problem=describe_problem(name), **how)
    in_place = start_spec(spec).run()
    assert differing(named, in_place) == []
    assert tw.RunSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", [n for n in HERE if tw.load_problem(n).conditional])
def test_what_waits_is_given_an_observation(name):
    target = parse_problem(describe_problem(name)).target()
    own = tw.load_problem(name).target()
    samples = own.exact_samples(5, seed=3, progress=False)
    observed = target.potential
    row = torch.tensor([observed.token_ids if hasattr(observed, "token_ids") else [observed.index]])
    expected = own.log_phi_given(samples.tokens, row.expand(5, -1))
    assert torch.allclose(target.log_phi(samples.tokens), expected)


def test_a_chat_is_a_prompt_that_a_person_types_the_last_message_of():
    chat = tw.load_problem("sad-answer").prompt
    assert prompt_text(chat) == "Write the first line of a sad story."
    assert with_text(chat, prompt_text(chat)) == chat
    assert with_text(chat, "Hello") == [{"role": "user", "content": "Hello"}]
    assert chat[-1]["content"] != "Hello"
    turns = [{"role": "system", "content": "Be kind."}, *chat]
    assert with_text(turns, "Hello") == [turns[0], {"role": "user", "content": "Hello"}]
    spec = tw.RunSpec(problem={**describe_problem("sad-answer"), "prompt": turns})
    assert tw.RunSpec.from_json(spec.to_json()) == spec
    assert f"prompt={turns!r}".replace("'", '"') in code_of_spec(spec)
    # The judge reads the answer alone, and no word of the request.
    assert describe_problem("sad-answer")["potential"][0]["scope"] == "continuation"
    assert prompt_text([3, 4]) == "#3 #4"
    assert with_text([3, 4], "#3 #4") == [3, 4]
    assert with_text([3, 4], "a") == with_text("b", "a") == "a"


def test_the_papers_own_are_described_without_their_models():
    described = describe_problem("paper/toxicity")
    assert described["potential"] == [{"kind": "OfProblem", "problem": "paper/toxicity"}]
    assert described["model"] == "roneneldan/TinyStories-33M"


def test_changing_a_description_changes_no_other():
    described = describe_problem("one-star-review")
    described["potential"][0]["label"] = "2 stars"
    described["potential"].append({"kind": "Length"})
    assert describe_problem("one-star-review") == {
        "name": "one-star-review", "model": "storybook", "prompt": "I bought this",
        "num_steps": 10, "form": "MLP head",
        "potential": [
            {"kind": "ClassProbability", "model": "storybook/stars", "label": "1 star"}
        ],
    }  # fmt: skip


class CountOf(BoundOnly):
    """A kind of a user: a subclass, and nothing else."""

    log_phi_max = 0.0

    def __init__(self, token, *, penalty=1.0):
        self.token, self.penalty = token, penalty

    def log_phi(self, tokens):
        (token,) = self.context.lm.encode(self.token)
        return -self.penalty * (tokens == token).sum(1).double()


class Plainest(tw.Potential):
    def log_phi(self, tokens):
        return -tokens.sum(1).double()


DESCRIBED = [
    tw.AvoidsToken("a", ["b", "c"]), tw.CountToken("a", at_least=1), tw.ContainsWord("a", "b"),
    tw.MatchesRegex("a+") ** 0.5, tw.Length(at_most=2), tw.Constant(2), tw.Continuation("ab"),
    tw.Infilling(num_tokens=1).condition("c"),
    tw.TemperedReward("storybook/hostility", beta=2) ** 2,
    tw.ClassProbability("storybook/stars", label=5) ** 2 * tw.AvoidsWord("a"),
    tw.Mixture([tw.ContainsToken("a") * CountOf("b"), tw.Constant()], [1, 2]),
    CountOf("b", penalty=2.0) ** 3 * Plainest(), tw.FullMatch("a+b?"),
    tw.Grammar('start: "a" start "b" | "ab"') ** 2,
]  # fmt: skip


@pytest.mark.parametrize("phi", DESCRIBED, ids=lambda phi: phi.describe())
def test_every_kind_goes_to_json_and_code_and_back(phi):
    lm = letters("c")
    described = json.loads(json.dumps(describe_potential(phi)))
    scope = {"tw": tw, "CountOf": CountOf, "Plainest": Plainest}
    by_code = [eval(code_of(part), scope) for part in described]
    grid = every(3, 3)
    expected = tw.Target(lm, phi, prompt="a", num_steps=3, eos="absorb").log_phi(grid)
    for again in (parse_potential(described), reduce(mul, by_code)):
        target = tw.Target(lm, again, prompt="a", num_steps=3, eos="absorb")
        assert torch.equal(target.log_phi(grid), expected)
        assert describe_potential(target.potential) == described


def test_a_users_kind_is_a_problem_with_code_and_formula():
    problem = {
        "name": "few b", "model": "table:rainy-week", "prompt": "sun", "num_steps": 4,
        "potential": {"kind": "CountOf", "token": "rain", "penalty": 2, "beta": 3},
    }  # fmt: skip
    spec = tw.RunSpec(problem=problem, num_particles=4, num_runs=1)
    assert formula_of(problem) == "log φ(s) = 3 log CountOf(s)"
    code = code_of_spec(spec)
    assert f"from {__name__} import CountOf" in code
    assert 'phi = CountOf("rain", penalty=2) ** 3' in code
    exec(code, namespace := {})
    assert torch.equal(namespace["trace"].tokens, start_spec(spec).run().tokens)


def test_a_users_class_does_not_take_a_name_of_the_package():
    class Length(tw.Potential):
        pass

    assert KINDS["Length"] is tw.Length


def test_what_json_cannot_hold_is_told():
    with pytest.raises(ValueError, match="its model is an object"):
        describe_potential(tw.ClassProbability(Stars(), label=3))
    with pytest.raises(ValueError, match="is not registered"):
        describe_potential(tw.TextFunction(ord))  # Which no test registers.


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("Constant", r"\{'kind': its name, .* got 'Constant'"),
        ([], r"\{'kind': its name, .* got \[\]"),
        ({"kind": "Nonsense"}, "kind of a potential must be one of .* got 'Nonsense'"),
        ([{"kind": "Constant", "worth": 1}], "Constant does not take what is given"),
        ({"kind": "Constant", "beta": 0}, "beta of a potential must be a positive number; got 0"),
    ],
)
def test_a_description_of_no_potential_is_refused(described, message):
    with pytest.raises(ValueError, match=message):
        parse_potential(described)
