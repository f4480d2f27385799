"""The particle view's traits, without a browser."""

import pytest

from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.record import Recorder


def pages_of(view):
    return [getattr(view, f"page{i}") for i in range(16)]


def sent(trace, **options):
    encoded = Recorder().encode(trace, **options)
    return [encoded[f"page{i}"] for i in range(16)]


def same(pages, others):
    """Whether all pages are equal; an assertion on bytes would take minutes to explain them."""
    return all(page == other for page, other in zip(pages, others, strict=True))


def test_everything_is_there_from_the_start(make_trace):
    trace = make_trace(K=4, T=6)
    view = ParticleView(trace, exact_log_z=-2, target="φ is mine")
    state = view.get_state()
    assert state["header"]["target"] == "φ is mine"
    assert state["header"]["exact_log_z"] == -2.0
    assert same(pages_of(view), sent(trace))


def test_update_sends_header_and_new_pages_together(make_trace):
    view = ParticleView()
    view.update(make_trace(K=4, T=32, done=9), run_id=1)
    messages = []
    view.send_state = lambda key=None: messages.append(set(key)) if key else None
    view.update(make_trace(K=4, T=32, done=10), run_id=1)
    assert messages == [{"header", "page4"}]
    view.update(make_trace(K=4, T=32, done=10), run_id=1)
    assert len(messages) == 1


def test_another_run_is_shown_when_the_front_end_asks(make_trace):
    trace = make_trace(K=4, T=3, num_runs=3)
    view = ParticleView(trace, run=1)
    assert view.header["run"] == 1
    view.set_state({"run": 2})
    assert view.header["run"] == 2
    assert view.header["id"] == 2
    view.update(make_trace(K=4, T=3))
    assert view.header["run"] == view.run == 0


def test_a_run_that_is_not_there_is_named(make_trace):
    with pytest.raises(ValueError, match=r"run must be one of 0\.\.2; got 5"):
        ParticleView(make_trace(K=4, T=3, num_runs=3), run=5)


def test_nothing_to_write_is_said():
    with pytest.raises(ValueError, match="no trace to write yet"):
        ParticleView().to_html("never.html")
