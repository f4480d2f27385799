"""Named problems, described in place, stay what they are."""

from dataclasses import fields

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.targets.description import describe_problem, problem_of

HERE = [name for name in tw.PROBLEMS if not name.startswith("paper/")]


@pytest.mark.parametrize("name", [n for n in HERE if not tw.load_problem(n).conditional])
def test_the_run_is_the_same_to_the_byte(name):
    how = {"num_particles": 6, "num_runs": 2}
    named = start_spec(tw.RunSpec(problem=name, **how)).run()
    spec = tw.RunSpec(problem=describe_problem(name), **how)
    in_place = start_spec(spec).run()
    for field in fields(named.columns):
        one, other = (getattr(trace.columns, field.name) for trace in (named, in_place))
        assert torch.equal(one, other), field.name
    assert named.info == in_place.info
    assert tw.RunSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", [n for n in HERE if tw.load_problem(n).conditional])
def test_what_waits_is_given_an_observation(name):
    target = problem_of(describe_problem(name)).target()
    own = tw.load_problem(name).target()
    samples = own.exact_samples(5, seed=3, progress=False)
    observed = target.potential
    row = torch.tensor([observed.token_ids if hasattr(observed, "token_ids") else [observed.index]])
    expected = own.log_phi_given(samples.tokens, row.expand(5, -1))
    assert torch.allclose(target.log_phi(samples.tokens), expected)


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
