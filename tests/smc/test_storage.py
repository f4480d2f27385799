"""Traces on disk: all comes back, and nothing else is taken for a trace."""

import json
import os
import pickle
import zipfile
from dataclasses import fields

import numpy as np
import pytest
import torch
from smc.toys import differing, eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.errors import TraceFormatError
from tsmc_widgets.smc import trace as storage
from tsmc_widgets.twists import TableTwist


@pytest.fixture
def trace():
    return tw.run_smc(
        eos_target(4),
        num_particles=5,
        num_runs=3,
        twist=TableTwist.random(3, 4, seed=2, prompt_length=2),
        proposal=tw.TwistInduced(),
        rule="always",
        top_k=2,
    )


@pytest.fixture
def path(trace, tmp_path):
    return trace.save(tmp_path / "run.trace")


def test_everything_comes_back(trace, path):
    loaded = tw.SMCTrace.load(path)
    assert differing(loaded, trace) == []
    for f in fields(trace.columns):
        assert getattr(loaded.columns, f.name).dtype == getattr(trace.columns, f.name).dtype
    assert dict(loaded.token_texts) == dict(trace.token_texts)
    assert loaded.to_frame().equals(trace.to_frame())
    assert len(loaded.tables) == 4


@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_that_is_not_done(steps, tmp_path):
    session = tw.start_smc(table_target(2, 4, seed=0), num_particles=3)
    for _ in range(steps):
        session.step()
    loaded = tw.SMCTrace.load(session.trace.save(tmp_path / "half"))
    assert (loaded.steps_done, loaded.num_steps, loaded.done) == (steps, 4, False)
    assert loaded.texts() == session.trace.texts()


def test_texts_with_markup_and_any_script_survive(tmp_path):
    lm = tw.TabularLM.markov(
        [0.3, 0.3, 0.4], [[0.3, 0.3, 0.4]] * 3, symbols=["<script>", "é\n", "☃"]
    )
    trace = tw.run_smc(tw.Target(lm, tw.Constant(), prompt="", num_steps=2), num_particles=9)
    loaded = tw.SMCTrace.load(trace.save(tmp_path / "texts"))
    assert loaded.texts() == trace.texts()
    assert any("<script>" in text for text in loaded.texts())


def test_an_old_file_is_replaced_whole(trace, path, monkeypatch):
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(storage.np, "savez_compressed", half)
    with pytest.raises(OSError, match="no space left"):
        trace.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


class TestRefused:
    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*nothing"):
            tw.SMCTrace.load(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError):
            tw.SMCTrace.load(tmp_path)

    def test_every_truncation(self, path, tmp_path):
        data = path.read_bytes()
        cut = tmp_path / "cut"
        for size in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
            cut.write_bytes(data[:size])
            with pytest.raises(TraceFormatError, match="not a trace saved by this package"):
                tw.SMCTrace.load(cut)

    def test_a_flipped_byte(self, path, tmp_path):
        """Zip members carry checksums: a change is told or harmless, never another run."""
        data, expected = path.read_bytes(), tw.SMCTrace.load(path)
        broken = tmp_path / "broken"
        for at in range(40, len(data), max(1, len(data) // 60)):
            broken.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                loaded = tw.SMCTrace.load(broken)
            except TraceFormatError:
                continue
            assert torch.equal(loaded.columns.tokens, expected.columns.tokens)
            assert torch.equal(loaded.columns.log_weights, expected.columns.log_weights)

    def test_foreign_files(self, tmp_path):
        for n, content in enumerate([b"", b"hello", pickle.dumps({"a": 1}), b"PK\x03\x04"]):
            (tmp_path / f"{n}").write_bytes(content)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("header", "{}")
        np.savez(tmp_path / "b.npz", tokens=np.zeros(3))
        np.save(tmp_path / "c.npy", np.zeros(3))
        for path in tmp_path.iterdir():
            with pytest.raises(TraceFormatError, match=r"not a trace saved|different shapes"):
                tw.SMCTrace.load(path)

    def test_pickled_arrays_are_never_run(self, path, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "boom"),)

        with np.load(path) as archive:
            arrays = dict(archive)
        arrays["tokens"] = np.array([Bomb()], dtype=object)
        np.savez(tmp_path / "bomb.npz", **arrays)
        with pytest.raises(TraceFormatError):
            tw.SMCTrace.load(tmp_path / "bomb.npz")
        assert not (tmp_path / "boom").exists()

    @pytest.mark.parametrize("name", ["header", "distinct", "table_0_tokens", "log_z"])
    def test_declared_sizes_are_not_believed(self, name, path, tmp_path):
        """Few bytes that say that they are many are refused before they are made."""
        with np.load(path) as archive:
            arrays = dict(archive)
        kept = arrays.pop(name)
        with (tmp_path / "huge").open("wb") as file:
            np.savez(file, **arrays)
        declared = {"descr": kept.dtype.str, "fortran_order": False, "shape": (2**36,)}
        with (
            zipfile.ZipFile(tmp_path / "huge", "a") as archive,
            archive.open(name + ".npy", "w") as f,
        ):
            np.lib.format.write_array_header_1_0(f, declared)
        with pytest.raises(TraceFormatError, match=r"too large|different shapes"):
            tw.SMCTrace.load(tmp_path / "huge")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": storage.VERSION + 1}, r"format 3; .* up to format 2: update"),
            ({"version": "1"}, "not a trace"),
            *[
                ({part: None}, "lacks a part")
                for part in ("tokens", "log_z", "table_1_log_q", "info", "final_texts")
            ],
            ({"tokens": np.zeros((3, 4, 4), dtype=np.int64)}, "columns of different shapes"),
            ({"ancestors": np.full((3, 4, 5), 5)}, r"its ancestors must be in 0..4"),
            ({"table_1_rows": np.full((3, 5), 99)}, "its rows must be in 0.."),
            ({"extra": np.zeros(1)}, "what no trace has: 'extra'"),
            *[
                ({"header": header}, "not a trace")
                for header in ([], 3, "x", None, {}, {"format": storage.FORMAT})
            ],
        ],
        ids=str,
    )
    def test_a_part_that_is_changed_or_missing(self, change, message, path):
        with np.load(path) as archive:
            arrays = dict(archive)
        header = json.loads(arrays["header"].tobytes())
        for name, value in change.items():
            part = header if name in header else arrays
            part[name] = value
            if value is None and name != "header":
                del part[name]
        written = change.get("header", header)
        arrays["header"] = np.frombuffer(json.dumps(written).encode(), dtype=np.uint8)
        with path.open("wb") as file:
            np.savez(file, **arrays)
        with pytest.raises(TraceFormatError, match=message):
            tw.SMCTrace.load(path)
