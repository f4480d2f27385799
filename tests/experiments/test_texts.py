"""What K texts of a method are worth: searches and samplers in one table, by names and numbers."""

import math

import pytest

import tsmc_widgets as tw
from tsmc_widgets.evaluation.baselines import run_baseline


def rows_of(method, **changes):
    usual = {"problem": "rainy-week", "num_particles": 6, "num_runs": 3, "seed": 2}
    rows = tw.execute(tw.RunSpec(**{**usual, "method": method, "measures": "texts", **changes}))
    return {(row["quantity"], row["rule"]): row for row in rows}


@pytest.mark.parametrize(
    ("method", "name", "rule", "options"),
    [
        ("rejection", "rejection", None, {}),
        ("best-of-n", "best-of-n", None, {}),
        ("beam", "beam", None, {}),
        ("none", "p0, SIS", "never", {"num_runs": 3}),
        ("optimal", "twist, SMC", "ESS < 0.5 K", {"num_runs": 3}),
    ],
)
def test_numbers_are_those_of_the_baseline(method, name, rule, options):
    target = tw.load_problem("rainy-week").target()
    if method == "optimal":
        options = {**options, "twist": tw.exact(target).optimal_twist()}
    found = run_baseline(name, target, num_samples=6, seed=2, **options)
    rows = rows_of(method)
    assert rows["mean log φ of texts", rule]["value"] == found.mean_log_phi
    assert rows["ESS of texts", rule]["value"] == found.ess
    assert rows["log Z by texts", rule]["value"] == found.log_z
    assert rows["log Z by texts", rule]["kind"] == found.log_z_kind
    assert rows["forward tokens", rule]["value"] == found.forward_tokens


def test_every_rule_and_k_has_its_rows():
    rows = rows_of("optimal", rule=("never", "always"), proposal="base", num_particles=(2, 4))
    assert {rule for _, rule in rows} == {"never", "every step"}


def test_a_twist_that_only_proposes_gives_texts_too():
    rows = rows_of("dpg", training=tw.Training(num_updates=2, batch_size=10, pool=20))
    assert {rule for _, rule in rows} == {"never"}


def test_budgets_that_end_are_remarked():
    rows = rows_of("rejection", problem="rare-event", max_draws=50, num_particles=40)
    assert "of 40 found in 50 draws" in rows["mean log φ of texts", None]["remark"]


def test_texts_of_targets_that_wait_are_not_measured():
    with pytest.raises(ValueError, match="measured of targets that wait for none"):
        rows_of("none", problem="one-token-infilling")


def test_a_comparison_puts_them_in_one_table():
    done = tw.compare(
        "rainy-week", ["rejection", "beam", "none", "optimal"], seeds=2, num_particles=4,
        num_runs=4, num_exact=4, num_samples=10,
    )  # fmt: skip
    assert not done.table.failures
    text = done.to_markdown("mean log φ of texts")
    assert "| beam |" in text
    assert "| rejection |" in text
    assert math.isfinite(done.entries("forward tokens")[0].mean)
    assert "KL(q||σ)" in done.quantities
