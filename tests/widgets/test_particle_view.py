"""The traits of the particle view and of the panels beside it, without a browser."""

import numpy as np
import pytest
from traitlets import TraitError

import tsmc_widgets as tw
from tsmc_widgets.widgets.particle_view import ParticleView, RunPanels
from tsmc_widgets.widgets.record import NUM_PAGES, Recorder, unpack

BOTH = pytest.mark.parametrize("kind", [ParticleView, RunPanels])


def test_everything_is_there_from_the_start(make_trace):
    trace = make_trace(K=4, T=6)
    view = ParticleView(trace, exact_log_z=-2, target="φ is mine")
    state = view.get_state()
    assert state["header"]["target"] == "φ is mine"
    assert state["header"]["exact_log_z"] == -2.0
    encoded = Recorder().encode(trace)
    # Of a truth value: an assertion on bytes would take minutes to explain them.
    assert all(getattr(view, f"page{i}") == encoded[f"page{i}"] for i in range(NUM_PAGES))


@BOTH
def test_update_sends_header_and_new_pages_together(make_trace, kind):
    view = kind()
    view.update(make_trace(K=4, T=32, done=9), run_id=1)
    messages = []
    view.send_state = lambda key=None: messages.append(set(key)) if key else None
    for _ in range(2):
        view.update(make_trace(K=4, T=32, done=10), run_id=1)
    assert messages == [{"header", "page4"}]
    view.update(make_trace(K=4, T=32, done=32), run_id=1)
    assert "page4" not in messages[-1]
    assert ("samples" in messages[-1]) == (kind is RunPanels)


@BOTH
def test_another_run_is_shown_when_the_front_end_asks(make_trace, kind):
    trace = make_trace(K=4, T=1, num_runs=3)
    view = kind(trace, run=1)
    assert view.header["run"] == 1
    view.set_state({"run": 2})
    assert (view.header["run"], view.header["id"]) == (2, 2)
    assert np.array_equal(unpack(view.page0)[1]["log_z"], trace.columns.log_z[2])
    view.update(make_trace(K=4, T=1))
    assert view.header["run"] == view.run == 0
    # Encoded once: pages that were sent twice would come under two numbers.
    assert view.header["id"] == 3


@BOTH
def test_a_page_is_of_one_trace(make_trace, tmp_path, kind):
    with pytest.raises(ValueError, match="no trace to write yet"):
        kind().to_html(tmp_path / "page.html")
    view, other = tw.ParticleView(make_trace(K=4, T=3)), make_trace(K=4, T=3)
    with pytest.raises(TypeError, match="bracket is for RunPanels"):
        ParticleView(other, bracket=(-1.0, 0.0))
    with pytest.raises(ValueError, match="give both the same"):
        RunPanels(other).to_html(tmp_path / "page.html", view=view)


@BOTH
def test_a_run_that_is_not_there_is_refused_and_that_on_show_stays(make_trace, kind):
    shown = kind(make_trace(K=4, T=3, num_runs=3), run=1)
    before = shown.header
    for wrong in (7, 3, -1):
        with pytest.raises(TraitError, match=f"run must be one of 0 to 2; got {wrong}"):
            shown.run = wrong
        assert (shown.run, shown.header) == (1, before)
    with pytest.raises(TraitError, match="step must be at least 0; got -2"):
        shown.step = -2
    assert shown.step == 0
    shown.run = 2
    assert shown.header["run"] == 2
