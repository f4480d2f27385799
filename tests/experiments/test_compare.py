"""Methods against each other: equal budgets, intervals over seeds, and tables that say no more."""

import csv
import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from scipy import stats
from tqdm.auto import tqdm

import tsmc_widgets as tw
from tsmc_widgets.experiments.compare import (
    Grid,
    OverSeeds,
    Place,
    cell_text,
    latex,
    mark_best,
    no_formula,
)
from tsmc_widgets.figures import bounds_figure, gap_figure, kl_forest_figure

SMALL = {"num_particles": (1, 4), "num_runs": 20, "num_exact": 20, "num_samples": 60}
METHODS = ("none", "optimal", "ctl", "dpg")


PLAN = tw.Training(num_updates=8, batch_size=30, pool=60)


def compared(seeds, folder, **more):
    problems = ["rainy-week", "eos"]
    return tw.compare(problems, METHODS, seeds=seeds, budget=PLAN, folder=folder, **SMALL, **more)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return compared(3, folder), folder


def entry(method, *values, quantity="gap", rule=""):
    return OverSeeds(Place("p", quantity, 4), method, tuple(map(float, values)), rule)


def best(*entries):
    return [e.method for e in mark_best(entries) if e.best]


def test_every_spec_has_the_same_budget(small):
    done = small[0]
    assert (done.done, done.total) == (24, 24)
    assert not done.table.failures
    plans = [spec.training for spec in done.specs if spec.learns]
    assert len(plans) == 12
    assert {(p.num_updates, p.batch_size, p.pool) for p in plans} == {(8, 30, 60)}
    assert [spec.training.seed for spec in done.specs if spec.learns] == [
        spec.seed for spec in done.specs if spec.learns
    ]
    assert PLAN.seed == 0


def test_means_and_intervals_are_those_of_student(small):
    done = small[0]
    frame = done.to_frame().set_index(["problem", "method", "quantity"])
    row = frame.loc[("rainy-week", "ctl", "KL(σ||q)")].squeeze()
    raw = done.table.to_frame()
    raw = raw[(raw.problem == "rainy-week") & (raw.method == "ctl") & (raw.quantity == "KL(σ||q)")]
    assert row["value"] == pytest.approx(raw.value.mean(), abs=1e-12)
    reach = stats.t.ppf(0.975, 2) * raw.value.std() / math.sqrt(3)
    assert (row.high - row.low) / 2 == pytest.approx(reach, rel=1e-9)
    assert row.num_seeds == 3


def test_learning_beats_none_and_nothing_beats_the_optimum(small):
    frame = small[0].to_frame()
    kl = frame[(frame.quantity == "KL(σ||q)") & (frame.problem == "rainy-week")].set_index("method")
    assert kl.value["ctl"] < kl.value["none"]
    # Its 20 exact samples agree under every seed, and rarer ones may not have been seen.
    reach = math.log(40) / 20
    assert (kl.low["optimal"], kl.high["optimal"]) == (
        pytest.approx(-reach, abs=1e-9), pytest.approx(reach, abs=1e-9)
    )  # fmt: skip
    assert abs(kl.value["optimal"]) < 1e-9
    assert not kl.best["optimal"]


def test_figures_read_the_table(small):
    frame = small[0].to_frame()
    rain = frame[frame.problem == "rainy-week"]
    log_z = tw.exact(tw.load_problem("rainy-week").target()).log_z
    bounds = rain[rain.quantity == "log Z"]
    assert (bounds.exact == log_z).all()
    assert set(bounds.side) == {"lower", "upper"}
    for figure in (bounds_figure(rain), gap_figure(rain), kl_forest_figure(rain, label="method")):
        assert figure.data
    assert "over seeds" in bounds_figure(rain).layout.title.subtitle.text
    own = small[0].table.to_frame()
    own = own[(own.problem == "rainy-week") & (own.seed == 0) & (own.method == "none")]
    assert "over runs" in bounds_figure(own).layout.title.subtitle.text
    assert len(small[0].table.to_frame())


def test_a_folder_is_gone_on_with(small):
    seen = []
    again = compared(4, small[1], watch=lambda comparison: seen.append(comparison.done))
    assert seen == list(range(1, 33))
    assert sum(result.stored for result in again.table.results.values()) == 24


def test_threads_fill_the_same_table(small, tmp_path):
    with ThreadPoolExecutor(2) as executor:
        other = compared(3, tmp_path, executor=executor)
    assert other.to_frame().equals(small[0].to_frame())


def test_only_separate_intervals_are_best():
    assert best(entry("a", 1.0, 1.1, 1.2), entry("b", 5.0, 5.1, 5.2)) == ["a"]
    assert best(entry("a", 1.0, 2.0, 3.0), entry("b", 2.0, 3.0, 4.0)) == []
    # Apart from one of the others is not enough.
    near, far = entry("b", 1.1, 1.2, 1.3), entry("c", 9.0, 9.1, 9.2)
    assert best(entry("a", 1.0, 1.1, 1.2), near, far) == []
    # What is infinite loses.
    assert best(entry("a", math.inf, math.inf), entry("b", 5.0, 5.1, 5.2)) == ["b"]


def test_higher_lower_bounds_are_better():
    low, high = (entry(n, v, v + 0.1, v + 0.2, quantity="lower") for n, v in (("a", -5), ("b", -1)))
    assert best(low, high) == ["b"]
    assert best(entry("a", 1, 1.1, quantity="E_q[log φ]"), entry("b", 9, 9.1)) == []


@pytest.mark.parametrize(
    "entries",
    [
        [entry("a", 1.0), entry("b", 5.0)],
        [entry("a", 1.0, 1.1, 1.2)],
        [entry("optimal", 0.0, 0.0, 0.0), entry("a", 1.0, 1.1, 1.2)],
        [entry("a", math.inf, math.inf), entry("b", math.inf, math.inf)],
        [entry("a", math.nan, 1.0), entry("b", 5.0, 5.1)],
    ],
    ids=["one seed", "no rival", "only the optimum besides", "infinite", "not a number"],
)
def test_none_is_best_where_nothing_is_shown(entries):
    assert best(*entries) == []


def test_two_rules_of_one_method_compete():
    found = mark_best(
        [entry("a", 1.0, 1.1, 1.2, rule="never"), entry("a", 5.0, 5.1, 5.2, rule="every step")]
    )
    assert [e.best for e in found] == [True, False]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.0, 1.2), "1.10 ± 1.27"),
        ((-1.0, -1.001), "−1.000 ± 0.006"),
        ((2.0, 2.0), "2.000"),
        ((-1e-17, 1e-17), "0.000"),
        ((1.234,), "1.23"),
        ((math.inf, 1.0), "∞"),
        ((-math.inf, 1.0), "−∞"),
        ((math.nan, 1.0), "–"),
    ],
)
def test_cells_read_well(values, text):
    assert cell_text(entry("a", *values)) == text


def test_seeds_that_agree_have_the_interval_of_their_runs():
    known = replace(entry("a", 2.0, 2.0), within=(1.5, 2.6))
    assert (known.interval, cell_text(known)) == ((1.5, 2.6), "2.00 ± 0.55")
    assert best(known, entry("b", 2.5, 2.5)) == []
    assert best(known, entry("b", 2.7, 2.7)) == ["a"]
    apart = replace(entry("a", 2.0, 2.1), within=(1.5, 2.6))
    assert apart.interval == entry("a", 2.0, 2.1).interval


def test_exports_have_every_cell_and_the_best_in_bold(tmp_path):
    entries = mark_best([entry("a", 1.0, 1.1, 1.2), entry("b", 5.0, 5.1, 5.2)])
    grid = Grid.of(entries, ("a", "b", "c"), title="gap")
    assert list(csv.reader(io.StringIO(grid.to_csv()))) == [
        ["method", "p"],
        ["a", "1.10 ± 0.25"],
        ["b", "5.10 ± 0.25"],
    ]
    assert r"a & \textbf{1.10 $\pm$ 0.25} \\" in grid.to_latex()
    assert r"b & 5.10 $\pm$ 0.25 \\" in grid.to_latex()
    assert "<strong>1.10 ± 0.25</strong>" in grid.to_html()
    assert grid.to_html().count("<strong>") == 1
    assert "| a | **1.10 ± 0.25** |" in grid.to_markdown()


def test_exports_are_inert():
    evil = "<script>alert(1)</script>&_%$#{}~^\\"
    place = Place(evil, "gap")
    grid = Grid.of(
        [OverSeeds(place, "=cmd()", (1.0, 2.0))], ("=cmd()",), title=f"{evil}\n\\input{{x}}"
    )
    assert "<script" not in grid.to_html()
    assert "&lt;script&gt;" in grid.to_html()
    assert "'=cmd()" in grid.to_csv()
    text = grid.to_latex()
    # The title is a comment of one line, the name is text.
    assert text.splitlines()[0].startswith("% <script>")
    assert r"\input" not in "\n".join(text.splitlines()[1:])
    assert latex("a_b%\\") == r"a\_b\%\textbackslash{}"
    assert "<script" not in grid.to_markdown()


def test_tables_are_written_to_files(small, tmp_path):
    done = small[0]
    for write, name in ((done.to_csv, "t.csv"), (done.to_latex, "t.tex"), (done.to_html, "t.html")):
        text = write("KL(q||σ)", tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
        assert "ctl" in text
    assert "K = 4" in done.to_markdown("lower")
    assert "dpg, IWAE" in done.to_markdown("lower")
    assert "ctl, SMC" in done.to_markdown("lower")
    assert "over 3 seeds" in done.to_html("gap")
    with pytest.raises(ValueError, match=r"quantity must be one of KL\(q"):
        done.grid("kl")


def test_failures_are_shown_and_the_others_compared():
    plan = tw.Training(form="MLP head", num_updates=2)
    done = tw.compare("rainy-week", ["none", "ctl"], seeds=2, budget=plan, **SMALL)
    assert len(done.table.failures) == 2
    assert "2 failed" in repr(done)
    assert "no hidden state" in done._repr_html_()
    assert set(done.to_frame().method) == {"none"}


def test_an_interrupt_carries_what_was_done(tmp_path, capsys):
    def stop(comparison):
        if comparison.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        tw.compare("eos", "none", seeds=5, folder=tmp_path, watch=stop, progress=True, **SMALL)
    assert error.value.comparison.done == 2
    assert "2/5" in capsys.readouterr().err
    assert not tqdm._instances
    assert len(tw.ResultTable(tmp_path)) == 2


def test_conditional_problems_are_compared_too():
    done = tw.compare("one-token-infilling", "none", seeds=2, **SMALL)
    assert not done.table.failures
    kl = done.to_frame().set_index("quantity").value
    assert kl["KL(q||σ)"] > 0
    assert kl["KL(σ||q)"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["clt"]}, "method must be one of none"),
        ({"methods": []}, "methods must hold at least one choice"),
        ({"problems": "nowhere"}, "no problem 'nowhere'"),
        ({"seeds": 0}, "seeds must be an integer of at least 1"),
        ({"budget": 0}, "num_updates must be an integer"),
    ],
)
def test_bad_requests_are_told(change, message):
    request = {"problems": "eos", "methods": "none", "seeds": 1, **change}
    with pytest.raises(ValueError, match=message):
        tw.compare(request.pop("problems"), request.pop("methods"), **request)


def test_a_comparison_of_given_specs_exports_itself_whole(small, tmp_path):
    done = small[0]
    own = tw.Comparison.of(done.specs)
    assert (own.methods, own.seeds) == (list(METHODS), (0, 1, 2))
    for result in done.table.results.values():
        own.table.add(result)
    assert own.to_frame().equals(done.to_frame())
    for kind in ("csv", "tex", "html"):
        own.export(kind, tmp_path / f"t.{kind}")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text(encoding="utf-8"))))
    assert [float(row["value"]) for row in rows] == own.to_frame()["value"].to_list()
    assert "KL(σ||q), nats" in (tmp_path / "t.html").read_text(encoding="utf-8")
    assert (tmp_path / "t.tex").read_text(encoding="utf-8").count(r"\end{tabular}") == len(
        own.quantities
    )


def test_no_name_is_a_formula_in_a_spreadsheet(tmp_path):
    story = {
        "name": "=HYPERLINK(1)", "model": "storybook", "prompt": "Once", "num_steps": 1,
        "potential": {"kind": "AvoidsWord", "args": ["upon"]},
    }  # fmt: skip
    spec = tw.RunSpec(problem=story)
    row = {"quantity": "gap", "side": None, "step": None, "run": None, "rule": "never"}
    row |= {"num_particles": 1, "value": 1.0, "kind": "bound", "exact": None}
    comparison = tw.Comparison.of([spec])
    comparison.table.add(tw.experiments.runs.RunResult(spec, [row]))
    comparison.export("csv", tmp_path / "t.csv")
    assert "'=HYPERLINK(1)" in (tmp_path / "t.csv").read_text(encoding="utf-8")
    for text in ("=1", "+A1", "-A1", "@SUM(A1)", "\t=1", "-1+A1"):
        assert no_formula(text) == f"'{text}"
    for text in ("-1.5", "+2e-3", "1", "a-b", ""):
        assert no_formula(text) == text


@pytest.mark.parametrize("kind", ["csv", "latex", "html", "markdown", "export"])
def test_a_failed_write_leaves_the_table_of_before(small, tmp_path, monkeypatch, kind):
    (tmp_path / "table").write_text("before")

    def full(path, text, **_):
        path.write_bytes(text.encode()[:5])
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    act = {"export": lambda path: small[0].export("csv", path)}.get(
        kind, lambda path: getattr(small[0], f"to_{kind}")("gap", path)
    )
    with pytest.raises(OSError, match="no space left"):
        act(tmp_path / "table")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("table", b"before")]
