"""What is sent to the browser is what the trace says."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from models.checkpoints import byte_tokenizer, make_checkpoint
from widgets.conftest import column, pages_of

import tsmc_widgets as tw
from tsmc_widgets.evaluation.estimates import PooledOverRuns
from tsmc_widgets.models.loading import load_language_model
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.api import run_smc, start_smc
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.tokens import ContainsToken
from tsmc_widgets.twists import TableTwist
from tsmc_widgets.widgets.record import MAX_SAMPLES, NUM_PAGES, Recorder, number, pack, unpack


def encode(trace, **options):
    return Recorder().encode(trace, **options)


def words(encoded):
    """All texts, in their places."""
    found = {}
    for page in filter(None, pages_of(encoded)):
        facts = unpack(page)[0]
        found |= dict(enumerate(facts["texts"], facts["known"]))
    return found


@pytest.fixture
def chain():
    lm = TabularLM.markov([0.6, 0.4], [[0.7, 0.3], [0.5, 0.5]], symbols="ab")
    return Target(lm, ContainsToken("b"), prompt="a", num_steps=4)


def test_pages_come_back():
    columns = {"a": np.arange(3, dtype=np.uint16), "b": np.array([0.5, -np.inf])}
    facts, found = unpack(pack({"texts": ["é", "<"]}, columns))
    assert facts == {"texts": ["é", "<"]}
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("steps", [1, 5, 16, 17, 40])
def test_columns_survive_the_way_to_the_browser(make_trace, steps):
    trace = make_trace(K=7, T=steps, dead_at=[1])
    encoded = encode(trace, exact_log_z=-1.25)
    assert list(encoded) == ["header", *(f"page{i}" for i in range(NUM_PAGES))]
    np.testing.assert_array_equal(column(encoded, "ancestors"), trace.columns.ancestors.ravel())
    np.testing.assert_array_equal(column(encoded, "log_z"), trace.columns.log_z.ravel())
    for name in ("log_increment", "log_psi", "log_p", "log_q"):
        expected = getattr(trace.columns, name).ravel().astype(np.float32)
        np.testing.assert_array_equal(column(encoded, name), expected)
    texts = words(encoded)
    assert [texts[i] for i in column(encoded, "tokens")] == [
        trace.token_texts[i] for i in trace.columns.tokens.ravel()
    ]
    weights = column(encoded, "weights").reshape(steps, 7)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(weights == 0, np.isneginf(trace.columns.log_weights[0]))
    assert encoded["header"]["exact_log_z"] == -1.25


def test_a_run_that_grows_sends_what_is_new(make_trace):
    recorder = Recorder()
    grown = [recorder.encode(make_trace(K=8, T=64, done=done), run_id=3) for done in range(65)]
    whole = encode(make_trace(K=8, T=64))
    texts, all_texts = words(grown[-1]), words(whole)
    for name in ("ancestors", "weights", "log_psi", "ess", "log_z"):
        np.testing.assert_array_equal(column(grown[-1], name), column(whole, name))
    assert [texts[i] for i in column(grown[-1], "tokens")] == [
        all_texts[i] for i in column(whole, "tokens")
    ]
    sent = 0
    for before, after in pairwise(grown):
        new = [
            page for old, page in zip(pages_of(before), pages_of(after), strict=True) if old != page
        ]
        assert len(new) == 1
        sent += len(new[0])
    assert sent < 4 * sum(map(len, pages_of(whole)))


def test_another_run_shares_no_page(make_trace):
    recorder = Recorder()
    first = recorder.encode(make_trace(K=8, T=16), run_id=1)
    second = recorder.encode(make_trace(K=8, T=16), run_id=2)
    assert first["header"]["id"] != second["header"]["id"]
    for page, other in zip(pages_of(first), pages_of(second), strict=True):
        assert unpack(page)[0]["id"] == first["header"]["id"]
        assert unpack(other)[0]["id"] == second["header"]["id"]
    shorter = recorder.encode(make_trace(K=8, T=16, done=3), run_id=2)
    assert shorter["header"]["id"] not in (first["header"]["id"], second["header"]["id"])
    unnamed = [recorder.encode(make_trace(K=8, T=16))["header"]["id"] for _ in range(2)]
    assert unnamed[0] != unnamed[1]


def test_one_run_of_several(make_trace):
    trace = make_trace(K=3, T=2, num_runs=4)
    encoded = encode(trace, run=2)
    np.testing.assert_array_equal(column(encoded, "ess"), trace.columns.ess[2])
    assert encoded["header"]["runs"] == trace.columns.log_z[:, -1].tolist()
    with pytest.raises(ValueError, match=r"run must be one of 0\.\.3; got 4"):
        encode(trace, run=4)


def test_tiny_weight_is_not_dead(make_trace):
    trace = make_trace(K=2, T=1)
    trace.columns.log_weights[:] = [[[0.0, -400.0]]]
    assert (column(encode(trace), "weights") > 0).all()


def test_samples_join_equal_texts_and_come_heaviest_first(make_trace):
    trace = make_trace(K=4, T=1)
    trace.columns.log_weights[:] = np.log([[[0.1, 0.3, 0.4, 0.2]]])
    trace.columns.log_psi[0, 0] = [-3.0, -1.0, -np.inf, -1.0]
    trace.final_texts = [["b", "a", "c", "a"]]
    samples = encode(trace)["header"]["samples"]
    assert [sample["text"] for sample in samples] == ["a", "c", "b"]
    assert [sample["copies"] for sample in samples] == [2, 1, 1]
    assert [sample["slot"] for sample in samples] == [1, 2, 0]
    assert [sample["log_phi"] for sample in samples] == [-1.0, "-Infinity", -3.0]
    np.testing.assert_allclose([s["weight"] for s in samples], [0.5, 0.4, 0.1], rtol=1e-6)


def test_samples_are_few_and_only_of_finished_runs(make_trace):
    assert len(encode(make_trace(K=200, T=30))["header"]["samples"]) == MAX_SAMPLES
    assert encode(make_trace(K=200, T=30, done=29))["header"]["samples"] == []


def test_threshold_zero_is_told_as_no_resampling(make_trace):
    assert "no resampling" in encode(make_trace(K=3, T=2, threshold=0.0))["header"]["facts"]


def test_nothing_recorded_yet(make_trace):
    encoded = encode(make_trace(K=3, T=2, done=0))
    assert encoded["header"]["steps_done"] == 0
    assert pages_of(encoded) == [b""] * NUM_PAGES


def test_numbers_that_json_lacks():
    values = [number(x) for x in (1.5, np.inf, -np.inf, np.nan)]
    assert values == [1.5, "Infinity", "-Infinity", "NaN"]


def test_one_run_tells_no_error_and_several_tell_their_spread(chain):
    assert encode(run_smc(chain, num_particles=32))["header"]["replicates"] is None
    trace = run_smc(chain, num_particles=32, num_runs=8)
    found = encode(trace)["header"]["replicates"]
    every = trace.columns.log_z.numpy()
    pooled = PooledOverRuns.of(trace.columns.log_z[:, -1])
    assert pooled.value == pytest.approx(np.log(np.exp(every[:, -1]).mean()))
    assert found["spread"] == pytest.approx(every.std(0, ddof=1), rel=1e-4)
    ends = [found[name] for name in ("pooled", "low", "high")]
    assert ends == [pooled.value, *pooled.interval()]
    assert (found["runs"], found["dead"]) == (8, 0)


def test_replicates_stand_beside_one_run(chain):
    one, eight = (run_smc(chain, num_particles=32, num_runs=R) for R in (1, 8))
    apart = encode(one, replicates=eight.columns.log_z)["header"]
    assert apart["replicates"] == encode(eight)["header"]["replicates"]


def test_dead_runs_have_no_spread(chain):
    every = torch.tensor([[-0.5, -1.0], [-0.5, -math.inf]], dtype=torch.float64)
    found = encode(run_smc(chain, num_particles=4), replicates=every)["header"]["replicates"]
    assert (found["dead"], found["spread"]) == (1, [0.0, None])
    assert found["pooled"] == pytest.approx(-1.0 - math.log(2))
    assert [found[name] for name in ("low", "high")] == ["-Infinity", "Infinity"]


def test_runs_that_agree_know_one_end_only(chain):
    """What no run has shown may add to Z: Markov's inequality bounds it from below alone."""
    every = torch.full((8, 2), -1.0, dtype=torch.float64)
    found = encode(run_smc(chain, num_particles=4), replicates=every)["header"]["replicates"]
    ends = [found[name] for name in ("pooled", "low", "high")]
    assert ends[:2] == pytest.approx([-1.0, -1.0 - math.log(40) / 8])
    assert ends[2] == "Infinity"


@pytest.mark.parametrize("run", [0, 1])
def test_every_particle_finds_its_next_tokens(run):
    lm = TabularLM.markov([0.6, 0.4], [[0.7, 0.3], [0.5, 0.5]], symbols="ab")
    target = Target(lm, ContainsToken("b"), prompt="a", num_steps=18)
    session = start_smc(
        target,
        num_particles=9,
        num_runs=2,
        twist=TableTwist.random(2, 18, seed=2, prompt_length=1),
        proposal=tw.TwistInduced(),
        dead_runs="keep",
        top_k=2,
    )
    recorder = Recorder()
    while not session.done:
        session.step()
        encoded = recorder.encode(session.trace, run=run, run_id=1)
    trace, texts = session.trace, words(encoded)
    rows = column(encoded, "table_rows").reshape(18, 9)
    starts = np.concatenate([[0], np.cumsum(column(encoded, "table_sizes"))])
    found = {
        name: column(encoded, f"table_{name}").reshape(-1, 2)
        for name in ("tokens", "log_p", "log_q", "log_psi")
    }
    for t, table in enumerate(trace.tables):
        for k in range(9):
            at, prefix = int(starts[t] + rows[t, k]), int(table.rows[run, k])
            names = [trace.token_texts[i] for i in table.tokens[prefix].tolist()]
            assert [texts[i] for i in found["tokens"][at]] == names
            for name in ("log_p", "log_q", "log_psi"):
                expected = getattr(table, name)[prefix].to(torch.float32).numpy()
                np.testing.assert_array_equal(found[name][at], expected)


SMILE, ALEF = "🙂".encode(), "א".encode()


@pytest.fixture(scope="module")
def byte_lm(tmp_path_factory):
    """A random model whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    return load_language_model(make_checkpoint("llama", folder, tokenizer=byte_tokenizer()))


def test_a_character_of_several_tokens_reads_whole_where_it_completes(byte_lm, make_trace):
    """Particles part ways amid a character, and each completes the one of its own path."""
    tokens = {byte_lm.token_text(i): i for i in range(byte_lm.vocab_size)}
    tokens |= {"<0x20><0xF0><0x9F>": 1000, "<0x99><0x82><0xF0>": 1001}
    token = [tokens.get(f"<0x{i:02X}>", tokens.get(chr(i))) for i in range(256)] + [1000, 1001]
    paths = [
        [SMILE[0], SMILE[0], ALEF[0], SMILE[1], 256],
        [SMILE[1], SMILE[1], ord("a"), SMILE[0], 257],
        [SMILE[2], SMILE[2], SMILE[2], ALEF[1], ord("d")],
        [SMILE[3], 0x81, ord("b"), ord("c"), ord("d")],
    ]
    trace = make_trace(K=5, T=4, threshold=0.0)
    trace.columns.tokens[0] = [[token[i] for i in step] for step in paths]
    # Particle 2 of step 3 comes of the smile that particle 1 has begun.
    trace.columns.ancestors[0] = [
        [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 1, 0, 4], [0, 1, 2, 3, 4]
    ]  # fmt: skip
    trace.token_texts = {i: text for text, i in tokens.items()}
    recorder = Recorder()
    for done in (1, 3, 4):
        grown = make_trace(K=5, T=4, done=done, threshold=0.0)
        for name in ("tokens", "ancestors"):
            setattr(grown.columns, name, getattr(trace.columns, name)[:, :done])
        grown.token_texts = trace.token_texts
        encoded = recorder.encode(grown, run_id=1)
    texts = words(encoded)
    shown = [texts[i] for i in column(encoded, "tokens")]
    assert np.reshape(shown, (4, 5)).tolist() == [
        ["◌", "◌", "◌", "\\x9f", "◌"],
        ["◌", "◌", "a", "◌", " 🙂◌"],
        ["◌", "◌", "◌", "◌", "d"],
        ["🙂", "🙁", "b", "c", "d"],
    ]


def test_texts_of_tokens_join_to_the_text(byte_lm):
    """On every path, and the likeliest next tokens are those of the prefix before them."""
    target = Target(byte_lm, tw.Constant(), prompt="The", num_steps=12)
    trace = run_smc(target, num_particles=64, seed=0, top_k=4, rule="always")
    encoded = encode(trace)
    texts = words(encoded)
    tokens = column(encoded, "tokens").reshape(12, 64)
    following = column(encoded, "table_tokens").reshape(-1, 4)
    rows = column(encoded, "table_rows").reshape(12, 64)
    sizes = np.cumsum([0, *column(encoded, "table_sizes")])
    for slot in range(64):
        at, read = slot, []
        for step in reversed(range(12)):
            read.insert(0, texts[tokens[step, at]])
            offered = trace.tables[step]
            mine = offered.tokens[offered.rows[0, at]].tolist()
            drawn = int(trace.columns.tokens[0, step, at])
            if drawn in mine:
                place = following[sizes[step] + rows[step, at], mine.index(drawn)]
                assert place == tokens[step, at]
            at = int(trace.columns.ancestors[0, step, at])
        shown = re.sub(r"◌|\\x..", "", "".join(read))
        raw = b"".join(
            bytes.fromhex(text[3:5]) if text.startswith("<0x") else text.encode()
            for text in map(byte_lm.token_text, trace.tokens[slot])
        )
        assert shown == raw.decode(errors="ignore")
