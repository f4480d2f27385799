"""The benchmark's own arithmetic, and all of it at its smallest size."""

import pandas as pd
import pytest

import tsmc_widgets as tw
from benchmarks import paper_twins
from tsmc_widgets.experiments.compare import OverSeeds, Place

PLACE = Place("p", "KL(q||σ)")


def entries(**values):
    return [OverSeeds(PLACE, name, tuple(own)) for name, own in values.items()]


def test_pairs_are_counted_where_intervals_separate():
    ours = entries(ctl=(1.0, 1.1, 1.2), rl=(3.0, 3.1, 3.2), dpg=(1.1, 1.2, 1.3), none=(9.0, 9.0))
    found = paper_twins.agreement(ours, {"ctl": 2.0, "rl": 1.0, "dpg": 0.5})
    assert found == {
        "same": [],
        "opposite": ["CTL < RL"],
        "undecided": ["CTL < DPG"],
    } | {"same": ["DPG < RL"]}


def test_rank_correlation_is_one_in_the_same_order_and_minus_one_in_the_other():
    ours = entries(ctl=(1.0,), rl=(3.0,), dpg=(2.0,))
    same = {"ctl": 0.1, "dpg": 0.2, "rl": 0.3}
    assert paper_twins.rank_correlation(ours, same) == pytest.approx(1)
    assert paper_twins.rank_correlation(ours, {m: -v for m, v in same.items()}) == pytest.approx(-1)


def test_every_method_has_the_same_budget_on_the_right_twin():
    for name, part in paper_twins.parts(quick=False).items():
        comparison = part.comparison(5)
        assert {spec.training.num_updates for spec in comparison.specs if spec.learns} == {
            part.budget.num_updates
        }
        assert (
            tw.load_problem(part.problem).twin
            == {
                "toxicity": "paper/toxicity",
                "sentiment": "paper/sentiment",
                "infilling 15/10": "paper/infilling-15-10",
                "infilling 2/1": "paper/infilling-2-1",
                "threshold": "paper/toxicity-threshold",
            }[name]
        )
        assert comparison.total == 5 * len(part.methods)
    assert set(paper_twins.PUBLISHED) < {p.problem for p in paper_twins.parts(quick=True).values()}


def test_each_method_trains_at_the_rate_that_was_found_for_it():
    part = paper_twins.parts(quick=False)["sentiment"]
    found = {"one-star-review": {"rl": {"rate": 0.01}}, "hostile-story": {"ctl": {"rate": 0.5}}}
    rates = {
        s.method: s.training.learning_rate for s in part.comparison(2, found).specs if s.learns
    }
    assert rates.pop("rl") == 0.01
    assert set(rates.values()) == {0.0}


def test_a_search_is_kept_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_twins, "METHODS", ("none", "ctl"))
    monkeypatch.setattr(paper_twins, "RATES", (0.003, 0.01))
    part = paper_twins.Part("infilling-2-1", ("none", "ctl"), tw.Training(num_updates=1), {})
    paper_twins.search({"short": part}, tmp_path, 100)
    found = paper_twins.read_rates(tmp_path)["infilling-2-1"]["ctl"]
    assert [trial["sequences"] for trial in found["trials"]] == [100, 100, 200]
    assert found["rate"] == found["trials"][-1]["rate"]
    monkeypatch.setattr(paper_twins, "search_settings", None)
    paper_twins.search({"short": part}, tmp_path, 100)


def test_unknown_experiments_are_told(capsys):
    with pytest.raises(SystemExit):
        paper_twins.main(["--only", "tocixity"])
    assert "no experiment 'tocixity'; there are toxicity, sentiment" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_fills_the_tables_and_is_gone_on_with(tmp_path, capsys):
    options = ["--quick", "--folder", str(tmp_path / "runs"), "--tables", str(tmp_path / "tables")]
    options += ["--only", "sentiment", "infilling 2/1"]
    paper_twins.main([*options, "--seeds", "1"])
    first = capsys.readouterr().out
    assert first.count("about") == 18
    assert "failed" not in first
    paper_twins.main([*options, "--seeds", "2"])
    second = capsys.readouterr().out
    assert second.count("about") == 18
    assert "36/36" in second
    frame = pd.read_csv(tmp_path / "tables" / "paper_twins.csv")
    assert set(frame.experiment) == {"sentiment", "infilling 2/1"}
    assert set(frame.method) == set(paper_twins.METHODS)
    assert set(frame.num_seeds) == {2}
    text = (tmp_path / "tables" / "paper_twins.md").read_text(encoding="utf-8")
    assert "Kendall's τ" in text
    assert "| ctl |" in text
