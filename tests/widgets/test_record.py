"""What is sent to the browser is what the trace says."""

import numpy as np
import pytest

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.tokens import ContainsToken
from tsmc_widgets.widgets.record import MAX_SAMPLES, encode


def column(encoded, name):
    entry = next(e for e in encoded.header["columns"] if e["name"] == name)
    dtype = np.dtype(entry["dtype"]).newbyteorder("<")
    return np.frombuffer(encoded.data, dtype, entry["length"], entry["offset"])


def test_columns_survive_the_way_to_the_browser(make_trace):
    trace = make_trace(K=7, T=5, dead_at=[3])
    encoded = encode(trace, exact_log_z=-1.25)
    assert encoded.header["num_bytes"] == len(encoded.data)
    assert all(entry["offset"] % 8 == 0 for entry in encoded.header["columns"])
    np.testing.assert_array_equal(column(encoded, "ancestors"), trace.columns.ancestors.ravel())
    np.testing.assert_array_equal(column(encoded, "log_z"), trace.columns.log_z.ravel())
    np.testing.assert_array_equal(column(encoded, "exact_log_z"), [-1.25])
    increments = trace.columns.log_increment.ravel().astype(np.float32)
    np.testing.assert_array_equal(column(encoded, "log_increment"), increments)
    words = [encoded.header["token_texts"][i] for i in column(encoded, "tokens")]
    assert words == [trace.token_texts[i] for i in trace.columns.tokens.ravel()]
    weights = column(encoded, "weights").reshape(5, 7)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(weights == 0, np.isneginf(trace.columns.log_weights[0]))


def test_one_run_of_several(make_trace):
    trace = make_trace(K=3, T=2, num_runs=4)
    encoded = encode(trace, run=2)
    np.testing.assert_array_equal(column(encoded, "ess"), trace.columns.ess[2])
    with pytest.raises(ValueError, match=r"run must be one of 0\.\.3; got 4"):
        encode(trace, run=4)


def test_tiny_weight_is_not_dead(make_trace):
    trace = make_trace(K=2, T=1)
    trace.columns.log_weights[:] = [[[0.0, -400.0]]]
    assert (column(encode(trace), "weights") > 0).all()


def test_samples_join_equal_texts_and_come_heaviest_first(make_trace):
    trace = make_trace(K=4, T=1)
    trace.columns.log_weights[:] = np.log([[[0.1, 0.3, 0.4, 0.2]]])
    trace.final_texts = [["b", "a", "c", "a"]]
    encoded = encode(trace)
    assert [sample["text"] for sample in encoded.header["samples"]] == ["a", "c", "b"]
    assert encoded.header["samples"][0] == {"text": "a", "copies": 2, "slot": 1}
    np.testing.assert_allclose(column(encoded, "sample_weights"), [0.5, 0.4, 0.1], rtol=1e-6)
    expected = trace.columns.log_psi[0, -1, [1, 2, 0]]
    np.testing.assert_allclose(column(encoded, "sample_log_phi"), expected, rtol=1e-6)


def test_samples_are_few_and_only_of_finished_runs(make_trace):
    assert len(encode(make_trace(K=200, T=30)).header["samples"]) == MAX_SAMPLES
    assert encode(make_trace(K=200, T=30, done=29)).header["samples"] == []


def test_threshold_zero_is_told_as_no_resampling(make_trace):
    assert "no resampling" in encode(make_trace(K=3, T=2, threshold=0.0)).header["facts"]


def test_nothing_recorded_yet(make_trace):
    encoded = encode(make_trace(K=3, T=2, done=0))
    assert encoded.header["steps_done"] == 0
    assert column(encoded, "tokens").size == 0


def test_standard_error_is_that_of_the_trace():
    lm = TabularLM.markov([0.6, 0.4], [[0.7, 0.3], [0.5, 0.5]], symbols="ab")
    target = Target(lm, ContainsToken("b"), prompt="a", num_steps=4)
    trace = run_smc(target, num_particles=32, seed=0)
    errors = column(encode(trace), "log_z_error")
    assert errors.shape == (4,)
    assert errors[-1] == pytest.approx(trace.log_z_variance() ** 0.5)
    assert (errors[:3] == 0).all()
    one = run_smc(target, num_particles=1, seed=1)
    assert np.isnan(column(encode(one), "log_z_error")).all()


def test_no_standard_error_once_all_share_an_ancestor(make_trace):
    trace = make_trace(K=4, T=3, threshold=0.0)
    trace.columns.ancestors[0, 2] = 1
    trace.columns.resampled[0, 2] = True
    errors = column(encode(trace), "log_z_error")
    np.testing.assert_array_equal(np.isnan(errors), [False, False, True])
