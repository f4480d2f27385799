"""The comparing widget without a browser: presses in, tables and status out, nothing lost."""

import html.parser
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import pandas as pd
import pytest
from gating import Gate
from widgets.conftest import press

import tsmc_widgets as tw
from tsmc_widgets.experiments import runs
from tsmc_widgets.experiments.runs import WorkerLostError
from tsmc_widgets.widgets.compare_page import CompareSession, bins
from tsmc_widgets.widgets.compare_runs import METHODS, CompareSettings, misfit

SMALL = {"num_particles": (1, 4), "seeds": 2, "num_runs": 20, "num_exact": 20, "num_samples": 40}
SECONDS = 60


@pytest.fixture
def make(tmp_path):
    """Function that makes a session whose runs are threads of this process."""
    with ThreadPoolExecutor(2) as lent, ExitStack() as pages:

        def session(problems="rainy-week", methods=("none", "optimal"), **settings):
            options = {"folder": tmp_path / "results", "executor": lent, **SMALL} | settings
            return pages.enter_context(closing(CompareSession(problems, methods, **options)))

        yield session


@pytest.fixture
def gate(monkeypatch):
    """Runs that wait for a permit each."""
    gate = Gate(monkeypatch, runs, "work")
    yield gate
    gate.open.release(99)


def settled(session):
    """The view's state once all is done and told."""
    assert session.wait(SECONDS)
    return session.view


def letters(session):
    return {(p["problem"], p["method"]): p.get("seeds", p.get("why")) for p in session.view.plan}


def cells(view, problem, quantity):
    found = view.results[problem]["cells"]
    return {cell[0]: cell for cell in found if cell[2] == quantity}


def test_a_press_computes_and_the_table_is_that_of_a_comparison(make):
    session = make()
    assert session.view.status["state"] == "idle"
    press(session, "start")
    view = settled(session)
    assert view.status["state"] == "done"
    assert (view.status["done"], view.status["total"]) == (4, 4)
    plain = tw.compare(
        "rainy-week", ("none", "optimal"), **SMALL, measures=session.specs[0].measures
    )
    assert session.comparison.to_frame().equals(plain.to_frame())
    row = plain.to_frame().set_index(["method", "quantity"]).loc[("none", "KL(σ||q)")]
    cell = cells(view, "rainy-week", "KL(σ||q)")["none"]
    assert cell[5:8] == pytest.approx([row["value"], row["low"], row["high"]], rel=1e-5)
    assert cell[4] == "estimate"
    assert view.results["rainy-week"]["exact"] == pytest.approx(
        tw.exact(tw.load_problem("rainy-week").target()).log_z, rel=1e-5
    )
    assert {cell[4] for cell in view.results["rainy-week"]["cells"] if cell[2] == "upper"} == {
        "bound"
    }


def test_what_is_stored_fills_in_without_a_press_and_is_not_done_again(make, monkeypatch):
    make().run(SECONDS)
    again = make()
    settled(again)
    assert (again.view.status["done"], again.view.status["state"]) == (4, "done")
    again.set(seeds=1)
    assert again.state == "done"
    more = make(seeds=3)
    done = []
    work = runs.work
    monkeypatch.setattr(runs, "work", lambda *args: done.append(args) or work(*args))
    assert settled(more).status["done"] == 4
    more.run(SECONDS)
    assert len(done) == 2
    assert more.comparison.total == 6


def test_pause_ends_what_runs_and_start_goes_on(make, gate):
    session = make(workers=1)
    session.start()
    assert gate.has_begun()
    press(session, "pause")
    assert session.state == "pausing"
    gate.open.release()
    assert session.wait(SECONDS)
    assert session.state == "paused"
    assert len(session.table) == 1
    gate.open.release(99)
    press(session, "start")
    assert settled(session).status["state"] == "done"
    assert len(session.table) == 4


def test_controls_are_locked_while_runs_are_under_way(make, gate):
    session = make()
    session.start()
    assert gate.has_begun()
    with pytest.raises(RuntimeError, match="pause or cancel"):
        session.set(seeds=4)
    session.view.settings = session.view.settings | {"seeds": 4}
    assert session.view.settings["seeds"] == 2
    press(session, "cancel")
    gate.open.release(99)
    assert session.wait(SECONDS)
    assert session.state == "cancelled"
    kept = len(session.table)
    assert 0 < kept < 4
    session.set(seeds=1)
    assert len(session.specs) == 2
    assert session.run(SECONDS).done == 2


def test_a_means_of_some_seeds_is_shown_as_such(make, gate):
    session = make(seeds=3, workers=1)
    session.start()
    gate.open.release(4)
    for _ in range(5):
        assert gate.has_begun()
    session._results_due = 0.0
    session._shown = session._reported = None
    session._show(session.live.progress)
    found = cells(session.view, "rainy-week", "KL(σ||q)")
    assert found["none"][8] == 2
    assert letters(session)["rainy-week", "none"] == "ddr"
    assert not any(cell[9] for cell in session.view.results["rainy-week"]["cells"])
    gate.open.release(99)
    assert settled(session)
    assert cells(session.view, "rainy-week", "KL(σ||q)")["none"][8] == 3


def test_a_failure_is_told_beside_the_others_and_tried_again(make, monkeypatch):
    work = runs.work

    def broken(spec, *given):
        if '"method": "optimal"' in spec:
            error = {"type": "ValueError", "message": "<script>no</script>", "traceback": ""}
            return {"error": error, "seconds": 0.1}
        return work(spec, *given)

    session = make()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "work", broken)
        session.start()
        view = settled(session)
    assert view.status["failures"] == [["rainy-week · optimal · seeds 0, 1", "<script>no</script>"]]
    assert letters(session)["rainy-week", "optimal"] == "ff"
    assert len(session.table) == 2
    session.run(SECONDS)
    assert settled(session).status["failures"] == []


def test_methods_that_do_not_fit_are_left_out_with_a_reason(make):
    session = make(("rainy-week", "one-token-infilling"), ("none", "optimal", "shipped", "beam"))
    assert session.misfits == {
        ("rainy-week", "shipped"): "no twist ships for it",
        ("one-token-infilling", "optimal"): "φ waits for an observation",
        ("one-token-infilling", "shipped"): "no twist ships for it",
        ("one-token-infilling", "beam"): "φ waits for an observation",
    }
    assert len(session.specs) == 2 * (3 + 1)
    session.run(SECONDS)
    assert not session.table.failures


@pytest.mark.parametrize(
    "problem",
    ["rainy-week", "one-token-infilling", pytest.param("infilling-2-1", marks=pytest.mark.slow)],
)
def test_every_method_that_is_said_to_fit_does(make, problem):
    fitting = [method for method in METHODS if not misfit(problem, method)]
    few = {"num_particles": 2, "num_runs": 2, "num_exact": 2, "num_samples": 4}
    session = make(problem, fitting, seeds=1, num_updates=1, batch_size=20, **few)
    session.run(SECONDS)
    assert session.table.errors().empty, session.table.errors()[["method", "message"]]
    assert len(session.table) == len(fitting)


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_figure_is_drawn_of_what_is_done(make, seeds):
    session = make(("rainy-week", "eos"), seeds=seeds)
    with pytest.raises(ValueError, match="press Start"):
        session.figure("kl")
    session.run(SECONDS)
    for kind in ("bounds", "gap", "kl", "reward", "profiles", "runs"):
        for theme in ("light", "dark"):
            figure = session.figure(kind, "eos", theme=theme)
            assert figure.data
            assert "eos" in figure.layout.title.text
    with pytest.raises(ValueError, match="kind must be one of"):
        session.figure("pie")


def test_exports_hold_every_number(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = make()
    press(session, "csv")
    assert "Nothing to write yet" in session.view.status["error"]
    session.run(SECONDS)
    session.view.stem = "out/table"
    for kind in ("csv", "tex", "html"):
        press(session, kind)
    assert session.view.status["error"] == ""
    written = pd.read_csv(tmp_path / "out" / "table.csv")
    expected = session.comparison.to_frame()
    assert written["value"].to_list() == pytest.approx(expected["value"].to_list())
    assert (tmp_path / "out" / "table.tex").read_text(encoding="utf-8").count("toprule") == len(
        session.comparison.quantities
    )
    page = (tmp_path / "out" / "table.html").read_text(encoding="utf-8")
    html.parser.HTMLParser().feed(page)
    assert page.count("<table>") == len(session.comparison.quantities)


def test_own_processes_are_sent_home_by_cancel(tmp_path):
    session = CompareSession(
        "rainy-week", ("none", "ctl"), folder=tmp_path, workers=1, num_updates=100_000, **SMALL
    )
    try:
        press(session, "start")
        end = time.monotonic() + SECONDS
        while not any(spec.method == "ctl" for spec, _ in session.runs.running):
            assert time.monotonic() < end
            time.sleep(0.05)
        press(session, "cancel")
        assert session.wait(SECONDS)
        assert session.state == "cancelled"
        assert [r.spec.method for r in session.table.results.values()] == ["none"]
        session.set(num_updates=2)
        assert session.run(SECONDS).done == 4
        (worker,) = [w for w in session.runs.pool._workers if w.alive]
        CompareSession("rainy-week", "none", folder=None).close()
        worker._process.join(SECONDS)
        assert not worker.alive
    finally:
        session.close()


def test_run_starts_again_after_workers_were_lost(make, monkeypatch):
    session = make(methods="none")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "work", lambda *_: (_ for _ in ()).throw(BrokenExecutor("lost")))
        with pytest.raises(WorkerLostError):
            session.run(SECONDS)
    assert session.run(SECONDS).done == session.comparison.total


def test_bad_settings_are_put_back_and_said(make):
    session = make()
    for bad, said in (
        ({"methods": []}, "methods must hold at least one"),
        ({"problems": ["rainy-weak"]}, "Did you mean 'rainy-week'"),
        ({"seeds": 0}, "seeds"),
        ({"colour": 1}, "the setting must be one of"),
    ):
        before = session.view.settings
        session.view.settings = before | bad
        assert session.view.settings == before
        assert said in session.view.status["error"]
    press(session, "dance")
    assert "act must be one of" in session.view.status["error"]


def test_settings_have_one_form():
    settings = CompareSettings(
        problems="rainy-week", methods=["ctl", "none", "ctl"], num_particles=[16, 4, 4]
    )
    assert settings.methods == ("none", "ctl")
    assert settings.num_particles == (4, 16)
    assert CompareSettings.from_dict(settings.to_dict()) == settings
    assert [spec.seed for spec in settings.specs()] == [0, 0, 1, 1, 2, 2]


def test_a_problem_described_in_place_is_compared_too(make):
    story = {
        "name": "yes, twice", "model": "storybook", "prompt": "Once", "num_steps": 2,
        "potential": {"kind": "Length", "mean": 2.0},
    }  # fmt: skip
    with pytest.raises(ValueError, match="does not take what is given"):
        make([story])
    story["potential"] = {"kind": "AvoidsWord", "args": ["dragon"]}
    session = make([story], "none", seeds=1)
    assert session.view.menu["problems"][-1]["group"] == "own"
    session.run(SECONDS)
    assert set(settled(session).results) == {"yes, twice"}


def test_one_comparison_at_a_time(make, gate):
    session = make()
    session.start()
    assert gate.has_begun()
    make()
    gate.open.release(99)
    assert session.wait(SECONDS)
    assert session.state == "cancelled"


def test_histograms_count_every_run_whatever_their_spread():
    wide, agreed = np.linspace(-3.0, -1.0, 40), np.full(40, -1.65) + 1e-16 * np.arange(40)
    for groups in ([wide, agreed], [agreed], [wide], [wide, wide / 9, np.array([-2.0])]):
        low, width, count = bins(groups)
        edges = low + width * np.arange(count + 1)
        assert 3 <= count <= 61
        assert [np.histogram(values, edges)[0].sum() for values in groups] == list(map(len, groups))


def test_a_saved_twist_is_a_method(make, tmp_path):
    problem = tw.load_problem("rainy-week")
    target = problem.target()
    twist = tw.TableHeadTwist(target.lm, num_steps=target.num_steps, prompt_length=1)
    folder, other = str(tmp_path / "mine"), str(tmp_path / "other")
    for each in (folder, other):
        tw.save_twist(twist, each, target=target)
    session = make(methods=(folder, "none"), num_exact=0)
    session.start()
    settled(session)
    assert session.settings.methods == ("none", folder)
    assert session.comparison.methods == ["none", folder]
    frame = session.table.to_frame()
    mine = frame[(frame["method"] == folder) & (frame["side"] == "lower")]
    spec = next(spec for spec in session.specs if spec.twist == folder)
    assert spec.method == "saved"
    with ThreadPoolExecutor(1) as lent:
        (alone,) = tw.map_runs([spec], lent)
    expected = [row["value"] for row in alone.rows if row["side"] == "lower"]
    assert sorted(mine[mine["seed"] == spec.seed]["value"]) == pytest.approx(sorted(expected))

    own = [entry["name"] for entry in session.view.menu["methods"] if entry["group"] == "own"]
    assert own == [folder]
    asked = session.settings.to_dict()
    session.view.settings = asked | {"methods": ["none"]}
    session.view.settings = asked
    assert session.settings.methods == ("none", folder)
    session.view.settings = asked | {"methods": ["none", other]}
    assert session.settings.methods == ("none", folder)
    assert "method must be one of" in session.view.status["error"]
    with pytest.raises(ValueError, match="folder of a saved twist"):
        session.set(methods=("none", str(tmp_path)))
