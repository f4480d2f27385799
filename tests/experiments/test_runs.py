"""Many specs: stored as they come, the same bytes on any executor, and nothing lost on the way."""

import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context

import pytest
import torch
from damage import flipped
from gating import Gate
from tqdm.auto import tqdm

import tsmc_widgets as tw
from tsmc_widgets.experiments import artifacts as resources
from tsmc_widgets.experiments import execute as worker
from tsmc_widgets.experiments import runs
from tsmc_widgets.experiments.artifacts import DamagedFileError, dumps, loads, read_file, write_file
from tsmc_widgets.experiments.runs import ResultFolder, SpecError, WorkerLostError

SMALL = {"num_particles": (2, 4), "num_runs": 5, "num_exact": 6, "num_samples": 20}
QUICK = tw.Training(num_updates=3, batch_size=10, pool=20)


def toy(problem="rainy-week", **changes):
    return tw.RunSpec(**{"problem": problem, **SMALL, **changes})


def toys(count):
    return [toy(seed=seed) for seed in range(count)]


ALL_KINDS = [
    toy(measures=("bounds", "kl", "profiles")),
    toy(method="ctl", training=QUICK, measures=("kl", "bounds")),
    toy(method="ctl", training=QUICK, measures="profiles"),
    toy(method="dpg", training=QUICK, measures=("bounds", "kl")),
    toy("rare-event", method="optimal"),
    toy("one-token-infilling", measures=("bounds", "kl", "profiles")),
]
STORYBOOK = [
    tw.RunSpec(problem="one-star-review", method=method, training=training, **SMALL)
    for method, training in (("none", None), ("ctl", QUICK), ("sixo", QUICK))
]


def contents(folder):
    """Bytes of every result, by name; what took how long is not part of it."""
    return {
        path.name: path.read_bytes()
        for path in folder.glob("*.json")
        if not path.name.endswith(".time.json")
    }


def run(specs, executor, folder):
    resources.forget()
    return [result.raise_error() for result in tw.map_runs(specs, executor, folder)]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    run(ALL_KINDS, None, folder)
    return folder


def processes():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


def test_numbers_are_those_of_the_estimators(serial):
    target = tw.load_problem("rainy-week").target()
    oracle = tw.exact(target)
    found = tw.log_z_bounds(
        target, num_particles=4, num_runs=5, exact_samples=oracle.sample(6, 0), seed=0
    )
    frame = tw.ResultTable(serial).to_frame()
    rows = frame[(frame.problem == "rainy-week") & (frame.method == "none")]
    rows = rows[(rows.quantity == "log Z") & (rows.num_particles == 4)].set_index("side")
    assert rows.value["lower"] == found.lower.mean
    assert rows.value["upper"] == found.upper.mean
    assert (rows.exact == oracle.log_z).all()


def test_bounds_under_observations_resample_as_the_spec_says():
    found = []
    for resampler in ("systematic", "multinomial"):
        measures = {"measures": ("bounds", "kl"), "rule": "always", "resampler": resampler}
        one = toy("one-token-infilling", **measures)
        rows = [row for row in worker.execute(one) if row["num_particles"] in (4, None)]
        found.append({(row["quantity"], row["side"]): row["value"] for row in rows})
    usual, other = found
    assert usual["log Z", "upper"] == other["log Z", "upper"]  # Always multinomial.
    assert usual["log Z", "lower"] != other["log Z", "lower"]
    assert usual["KL(q||σ)", None] != other["KL(q||σ)", None]


def test_optimal_twist_closes_the_gap(serial):
    frame = tw.ResultTable(serial).to_frame()
    best = frame[(frame.method == "optimal") & (frame.quantity == "log Z")]
    assert len(best) == 4
    assert (best.value - best.exact).abs().max() < 1e-10


def test_profiles_have_a_row_for_each_step(serial):
    frame = tw.ResultTable(serial).to_frame()
    ess = frame[
        (frame.quantity == "ESS / K") & (frame.method == "none") & (frame.num_particles == 4)
    ]
    assert ess[ess.problem == "rainy-week"].step.tolist() == [1, 2, 3, 4, 5]
    assert ess.value.between(0.25 - 1e-9, 1 + 1e-9).all()


def test_a_twist_that_only_proposes_never_resamples(serial):
    frame = tw.ResultTable(serial).to_frame()
    bounds = frame[(frame.method == "dpg") & (frame.quantity == "log Z")]
    assert set(bounds.rule) == {"never"}


def test_bytes_depend_neither_on_the_order_nor_on_what_was_stored(serial, tmp_path):
    run(ALL_KINDS[::-1], None, tmp_path)
    assert contents(tmp_path) == contents(serial)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    # The twists and samples on disk are found now, where they were made before.
    assert list((tmp_path / "shared" / "twists").iterdir())
    run(ALL_KINDS, None, tmp_path)
    assert contents(tmp_path) == contents(serial)


def test_threads_give_the_same_bytes(serial, tmp_path):
    before = torch.get_num_threads()
    with ThreadPoolExecutor(3) as executor:
        run(ALL_KINDS, executor, tmp_path)
    assert contents(tmp_path) == contents(serial)
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_processes_give_the_same_bytes_on_storybook_too(tmp_path):
    specs = [*ALL_KINDS, *STORYBOOK]
    run(specs, None, tmp_path / "serial")
    run(specs[::-1], None, tmp_path / "reversed")
    with ThreadPoolExecutor(2) as executor:
        run(specs, executor, tmp_path / "threads")
    with processes() as executor:
        run(specs, executor, tmp_path / "processes")
    for name in ("reversed", "threads", "processes"):
        assert contents(tmp_path / name) == contents(tmp_path / "serial"), name


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_finished(tmp_path):
    specs = toys(60)
    seen = []
    with processes() as executor:
        stream = tw.map_runs(specs, executor, tmp_path)
        seen.append(next(stream))
        for pid in list(executor._processes):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="specs are not done"):
            seen.extend(stream)
    kept = contents(tmp_path)
    assert {f"{result.spec.key}.json" for result in seen} <= set(kept)
    assert 1 <= len(kept) < 60
    assert not [name for name in kept if "error" in name]
    again = list(tw.map_runs(specs, None, tmp_path))
    assert sum(result.stored for result in again) == len(kept)
    assert len(contents(tmp_path)) == 60
    assert kept.items() <= contents(tmp_path).items()


def test_only_what_is_missing_is_computed(tmp_path, monkeypatch):
    specs = toys(4)
    run(specs[:3], None, tmp_path)
    worked = []
    work = runs.work
    monkeypatch.setattr(
        runs, "work", lambda text, shared: worked.append(text) or work(text, shared)
    )
    stream = tw.map_runs([*specs, specs[0]], None, tmp_path)
    assert stream.total == 4
    assert [result.stored for result in stream] == [True] * 3 + [False]
    assert worked == [specs[3].to_json()]


def test_a_failed_spec_is_readable_and_the_others_go_on(tmp_path):
    bad = toy(method="ctl", training=tw.Training(form="MLP head"))
    results = list(tw.map_runs([bad, *toys(2)], None, tmp_path))
    assert [result.error is None for result in results] == [False, True, True]
    with pytest.raises(
        SpecError, match="rainy-week, method ctl: ValueError: TabularLM has no hidd"
    ):
        results[0].raise_error()
    table = tw.ResultTable(tmp_path)
    assert len(table) == 2
    (error,) = table.errors().to_dict("records")
    assert error["method"] == "ctl"
    assert "hidden state" in error["message"]
    assert "Traceback" in error["traceback"]


def test_a_failure_is_tried_again_and_forgotten(tmp_path, monkeypatch):
    (spec,) = toys(1)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "measure", lambda *_: 1 / 0)
        assert next(tw.map_runs([spec], None, tmp_path)).error["type"] == "ZeroDivisionError"
    assert len(tw.ResultTable(tmp_path).failures) == 1
    assert next(tw.map_runs([spec], None, tmp_path)).error is None
    table = tw.ResultTable(tmp_path)
    assert (len(table), len(table.failures)) == (1, 0)


def test_cancel_keeps_what_is_done_and_what_runs(tmp_path, monkeypatch):
    gate = Gate(monkeypatch, runs, "work")
    with ThreadPoolExecutor(1) as executor:
        stream = tw.map_runs(toys(5), executor, tmp_path)
        gate.open.release()
        first = next(stream)
        assert gate.has_begun()
        assert gate.has_begun()
        assert stream.cancel() == 3
        gate.open.release()
        rest = list(stream)
    assert len(rest) == 1
    assert len(contents(tmp_path)) == 2
    assert tw.ResultTable(tmp_path).results.keys() == {first.spec.key, rest[0].spec.key}


def test_what_finishes_is_stored_though_nobody_listens(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        tw.map_runs(toys(4), executor, tmp_path)
    assert len(contents(tmp_path)) == 4


def test_serial_runs_stop_where_the_loop_is_left(tmp_path):
    stream = tw.map_runs(toys(4), None, tmp_path)
    next(stream)
    assert stream.cancel() == 3
    assert list(stream) == []
    assert len(contents(tmp_path)) == 1


def test_an_interrupt_keeps_what_is_done(tmp_path, monkeypatch):
    specs = toys(3)
    work = runs.work

    def interrupted(text, shared):
        if text == specs[1].to_json():
            raise KeyboardInterrupt
        return work(text, shared)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "work", interrupted)
        stream = tw.map_runs(specs, None, tmp_path, progress=True)
        next(stream)
        assert tqdm._instances
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert not tqdm._instances
    assert list(contents(tmp_path)) == [f"{specs[0].key}.json"]
    assert [result.stored for result in tw.map_runs(specs, None, tmp_path)] == [True, False, False]


@pytest.fixture(params=[None, ThreadPoolExecutor], ids=["serial", "threads"])
def executor(request):
    with nullcontext() if request.param is None else request.param(1) as executor:
        yield executor


def test_a_bar_counts_what_has_come_and_changes_nothing(executor, tmp_path, capsys):
    for progress in (False, True):
        list(tw.map_runs(toys(2), executor, tmp_path / f"{progress}", progress=progress))
        assert ("2/2" in capsys.readouterr().err) == progress
        assert not tqdm._instances
    assert contents(tmp_path / "True") == contents(tmp_path / "False")


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"value": -', '"value": '),
        lambda text: "\x00\x01",
        lambda text: '{"format": "tsmc_widgets.Result", "version": 99, "sha256": ""}\n{}',
        lambda text: '[]\n{"rows": []}',
    ],
    ids=["cut", "empty", "changed", "binary", "newer", "foreign"],
)
def test_damaged_files_are_seen_and_made_again(harm, tmp_path):
    (spec,) = toys(1)
    run([spec], None, tmp_path)
    path = tmp_path / f"{spec.key}.json"
    whole = path.read_text()
    path.write_text(harm(whole))
    with pytest.raises(DamagedFileError):
        read_file(path)
    table = tw.ResultTable(tmp_path)
    assert (len(table), list(table.damaged)) == (0, [path.name])
    (result,) = tw.map_runs([spec], None, tmp_path)
    assert not result.stored
    assert path.read_text() == whole
    assert table.refresh() == 1
    assert (len(table), len(table.damaged)) == (1, 0)


def test_a_flipped_bit_is_never_read_as_another_result(tmp_path):
    value = {"rows": [{"value": -1.5, "remark": "φ"}]}
    data = write_file(tmp_path / "whole", value).read_bytes()
    for bit in range(8 * len(data)):
        (tmp_path / "damaged").write_bytes(flipped(data, bit))
        try:
            assert read_file(tmp_path / "damaged") == value
        except DamagedFileError:
            continue


def test_damaged_shared_files_are_made_again(tmp_path):
    specs = [toy(method="ctl", training=QUICK, seed=seed) for seed in (0, 1)]
    run(specs[:1], None, tmp_path)
    kept = contents(tmp_path)
    for path in (tmp_path / "shared").rglob("*.*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    resources.forget()
    (tmp_path / f"{specs[0].key}.json").unlink()
    run(specs, None, tmp_path)
    assert kept.items() <= contents(tmp_path).items()


def test_no_half_written_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_file(tmp_path / "x.json", {})
    assert list(tmp_path.iterdir()) == []


def test_numbers_without_a_word_in_json_come_back():
    value = {"a": [float("inf"), -float("inf"), 1.5], "b": {"c": float("nan")}, "d": None}
    again = loads(dumps(value))
    assert again["a"] == value["a"]
    assert again["b"]["c"] != again["b"]["c"]
    assert dumps(again) == dumps(value)


def test_twists_are_trained_once_for_all_specs(tmp_path, monkeypatch):
    trained = []
    train = resources.train
    monkeypatch.setattr(resources, "train", lambda *given: trained.append(given) or train(*given))
    run([toy(method="ctl", training=QUICK, seed=seed) for seed in range(3)], None, tmp_path)
    assert len(trained) == 1
    resources.forget()
    run([toy(method="ctl", training=QUICK, seed=7)], None, tmp_path)
    assert len(trained) == 1


class Emptied(dict):
    """As if another thread dropped everything after each look."""

    def __contains__(self, key):
        found = super().__contains__(key)
        self.clear()
        return found

    def get(self, key):
        value = super().get(key)
        self.clear()
        return value


def test_other_threads_may_drop_what_is_about_to_be_handed_out(monkeypatch):
    monkeypatch.setattr(resources, "_MADE", Emptied(twist=7))
    how = {"read": dict, "make": lambda: 8, "write": print}
    assert [resources._find_or_make("twist", None, **how) for _ in range(2)] == [7, 8]


def test_conditional_problems_need_exact_samples(tmp_path):
    (result,) = tw.map_runs([toy("one-token-infilling", num_exact=0)])
    assert "num_exact must be at least 2" in result.error["message"]


def test_texts_of_errors_are_inert(tmp_path):
    evil = {
        "name": "<script>alert(1)</script>",
        "model": "storybook",
        "prompt": "I bought this",
        "num_steps": 2,
        "potential": {"kind": "ContainsToken", "args": ["<script>"]},
    }
    (result,) = tw.map_runs([toy(evil)], None, tmp_path)
    table = tw.ResultTable(tmp_path)
    assert result.error is not None
    assert "<script" not in table._repr_html_()
    assert "<script" in table.errors().problem[0]


def test_wrong_arguments_are_told(tmp_path):
    with pytest.raises(TypeError, match="specs must hold RunSpec"):
        tw.map_runs(["rainy-week"])
    with pytest.raises(TypeError, match=r"client\.get_executor"):
        tw.map_runs([], object())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        tw.map_runs(toys(1), None, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="give the one that map_runs"):
        tw.ResultTable(tmp_path / "nowhere")


def leave(text):
    raise SystemExit("by the user's code")


def test_a_spec_that_ends_the_program_is_an_error_and_the_others_go_on(tmp_path, executor):
    tw.register_function(leave)
    part = {"kind": "TextFunction", "function": "leave"}
    problem = {**tw.targets.description.describe_problem("rainy-week"), "potential": part}
    specs = [toy(problem), toy(seed=1)]
    first, second = sorted(tw.map_runs(specs, executor, tmp_path), key=lambda r: r.error is None)
    assert "raised SystemExit: by the user's code" in first.error["message"]
    assert second.error is None


def named(function, name="of the tests"):
    tw.register_function(function, name=name)
    part = {"kind": "TextFunction", "function": name}
    return toy({**tw.targets.description.describe_problem("rainy-week"), "potential": part})


def test_worker_processes_get_the_functions_that_a_spec_names(monkeypatch):
    spec = named(len, "length of the tests")
    (expected,) = tw.map_runs([spec])
    pools = [runs.CancellablePool(1)]
    pools.append(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
    for pool in pools:
        (result,) = tw.map_runs([spec], pool)
        assert dumps(result.raise_error().rows) == dumps(expected.rows)
    own = named(lambda text: 0.0)
    monkeypatch.setattr("tsmc_widgets.experiments.runs.work", lambda *_: pytest.fail("was run"))
    for pool in pools:
        with pytest.raises(ValueError, match=r"'of the tests' .* cannot be sent to worker"):
            tw.map_runs([spec, own], pool)
        pool.shutdown()
    monkeypatch.undo()
    with ThreadPoolExecutor(1) as threads:
        for pool in (None, threads, runs.CancellablePool(1, threads)):
            (result,) = tw.map_runs([own], pool)
            assert result.raise_error().rows


def test_text_that_no_encoding_has_is_stored_and_comes_back(tmp_path, executor):
    def fails(text):
        raise ValueError("\ud800 is half a character")

    spec, other = named(fails, "fails \udfff of the tests"), toy()
    results = {r.spec.key: r for r in tw.map_runs([spec, other], executor, tmp_path)}
    assert "\ud800 is half" in results[spec.key].error["message"]
    assert results[other.key].error is None
    stored = read_file(tmp_path / f"{spec.key}.error.json")
    assert tw.RunSpec.from_dict(stored["spec"]) == spec


def test_a_worker_process_outlives_code_that_ends_it():
    pool = runs.CancellablePool(1)
    with pytest.raises(RuntimeError, match="SystemExit was raised: 3"):
        pool.submit(sys.exit, 3).result(60)
    assert pool.submit(max, 1, 2).result(60) == 2
    pool.shutdown()


def test_what_cannot_be_stored_is_handed_back_and_the_others_go_on(tmp_path, monkeypatch, executor):
    write = ResultFolder.write

    def full(self, result):
        if result.spec.seed == 0:
            raise OSError(28, "No space left on device")
        write(self, result)

    monkeypatch.setattr(ResultFolder, "write", full)
    with pytest.warns(RuntimeWarning, match="seed 0 could not be stored .*No space left"):
        results = {r.spec.seed: r for r in tw.map_runs(toys(3), executor, tmp_path)}
    assert [bool(results[seed].unstored) for seed in range(3)] == [True, False, False]
    assert results[0].rows == tw.execute(toy(seed=0))
    assert len(tw.ResultTable(tmp_path)) == 2


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_run(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(runs, "work", lambda *_: pytest.fail("something was run"))
    with pytest.raises(PermissionError):
        tw.map_runs(toys(2), None, tmp_path)
    monkeypatch.undo()
    tw.map_runs([], None, tmp_path)
    assert list(tmp_path.iterdir()) == []
