"""What is known of log Z beside a run: its value, or a certified bracket."""

import pytest

import tsmc_widgets as tw
from tsmc_widgets.errors import Stopped, stop_when
from tsmc_widgets.widgets.run_page import NARROW, exact_log_z, narrow_bracket


@pytest.fixture(scope="module")
def lm():
    return tw.load_language_model("storybook")


def short(lm, **options):
    """Texts of two tokens, of which p0 writes few: too many to enumerate, few that matter."""
    return tw.Target(lm, tw.AvoidsWord("brown"), prompt="I bought this", num_steps=2, **options)


def test_exact_values_where_texts_are_few(lm):
    toy = tw.load_problem("late-evidence").target()
    assert exact_log_z(toy) == tw.exact(toy).log_z
    assert exact_log_z(short(lm)) is None


def test_a_bracket_where_they_are_not(lm):
    target = short(lm)
    bracket = narrow_bracket(target)
    assert bracket.width <= NARROW
    assert bracket.contains(tw.exact(target, max_sequences=10**6).log_z)


def test_wide_brackets_are_not_shown(lm):
    late = tw.Target(lm, tw.ContainsWord("castle"), prompt="Once upon a time", num_steps=20)
    assert narrow_bracket(late) is None


def test_without_a_bound_on_phi_there_is_none(lm):
    unbounded = tw.TokenFunction(lambda rows: rows.sum(1).double())
    assert narrow_bracket(tw.Target(lm, unbounded, prompt="I", num_steps=2)) is None


def test_the_search_is_given_up_for_a_newer_run(lm):
    with stop_when(lambda: True), pytest.raises(Stopped):
        narrow_bracket(short(lm))


def test_targets_that_are_described_alike_have_their_own_brackets(lm):
    constant = [
        tw.Target(lm, tw.TextFunction(f, log_phi_max=0.0, name="f"), prompt="I", num_steps=1)
        for f in (lambda text: -1.0, lambda text: -2.0)
    ]
    found = [narrow_bracket(target) for target in constant]
    assert found[0].contains(-1.0)
    assert found[1].contains(-2.0)
    assert not found[0].contains(-2.0)


def test_the_workbench_shows_it_and_keeps_it_with_a_pinned_run(opened):
    described = {
        "name": "short",
        "model": "storybook",
        "prompt": "I bought this",
        "num_steps": 2,
        "potential": {"kind": "AvoidsWord", "args": ["brown"]},
    }
    workbench = opened(tw.Workbench, tw.RunSpec(problem=described, num_particles=8, num_runs=2))
    low, high = workbench.panels.header["bracket"]
    exact = tw.exact(workbench.target, max_sequences=10**6).log_z
    assert low <= exact <= high
    workbench.pin()
    assert workbench.bench.pinned_panels.header["bracket"] == [low, high]
