"""Learned twists come back from disk as they were, onto their own base model only."""

import copy
import json
import random
import shutil

import pytest
import torch
from damage import flipped
from models.checkpoints import make_checkpoint
from twists.forms import CONDITIONAL, FORMS, observations, random_texts, stir

import tsmc_widgets as tw
from tsmc_widgets.errors import TwistFormatError
from tsmc_widgets.models import HuggingFaceLM
from tsmc_widgets.twists import storage

ALL = FORMS | CONDITIONAL


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("link", ["log", "sigmoid"])
def test_a_twist_comes_back_bit_for_bit(name, link, gpt2, tmp_path):
    twist = stir(ALL[name](gpt2, link=link))
    twist.method = "ctl"
    loaded = tw.load_twist(tw.save_twist(twist, tmp_path / "twist"), gpt2)
    assert type(loaded) is type(twist)
    assert same_weights(loaded, twist)
    assert (loaded.link, loaded.method, loaded.proposal_only) == (link, "ctl", False)
    assert loaded.options == twist.options
    tokens = random_texts(gpt2)
    if name in CONDITIONAL:
        twist, loaded = (each.condition(observations(name)[1]) for each in (twist, loaded))
    assert torch.equal(loaded.log_psi(tokens, 2), twist.log_psi(tokens, 2))
    names = sorted(path.name for path in (tmp_path / "twist").iterdir())
    assert names == ["twist.json", "twist.safetensors"]


def test_a_table_comes_back_onto_its_tabular_model(tmp_path):
    lm = tw.TabularLM.random(3, 5, seed=0)
    twist = stir(tw.TableHeadTwist(lm, num_steps=3, prompt_length=2))
    twist.method = "dpg"
    tw.save_twist(twist, tmp_path)
    loaded = tw.load_twist(tmp_path, lm)
    assert same_weights(loaded, twist)
    assert loaded.proposal_only
    with pytest.raises(TwistFormatError, match="other weights"):
        tw.load_twist(tmp_path, tw.TabularLM.random(3, 5, seed=1))
    with pytest.raises(TwistFormatError, match="vocabulary 3, and this one has 4"):
        tw.load_twist(tmp_path, tw.TabularLM.random(4, 5, seed=0))


def test_target_and_history_stand_in_the_json(gpt2, tmp_path):
    phi = tw.ContainsToken("fox")
    target = tw.Target(gpt2, phi, prompt="once upon a", num_steps=4)
    history = [{"loss": torch.tensor(0.5), "bound": -torch.inf}, {"loss": float("nan"), "ess": 3}]
    twist = tw.LinearHeadTwist(gpt2)
    tw.save_twist(twist, tmp_path, target=target, history=history)
    card = json.loads((tmp_path / "twist.json").read_text())
    assert card["history"] == [{"loss": 0.5, "bound": None}, {"loss": None, "ess": 3}]
    assert card["target"] == {
        "potential": phi.describe(),
        "prompt": "once upon a",
        "prompt_tokens": target.prompt_tokens.tolist(),
        "num_steps": 4,
        "eos": "ignore",
    }
    assert card["base_model"]["model_type"] == "gpt2"
    loaded = tw.load_twist(tmp_path, gpt2)
    assert loaded.card == card
    tw.save_twist(loaded, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "twist.json").read_text())
    assert (again["target"], again["history"]) == (card["target"], card["history"])


def test_half_precision_halves_the_file(gpt2, tmp_path):
    twist = stir(tw.MLPHeadTwist(gpt2, width=64))
    tw.save_twist(twist, tmp_path / "whole")
    tw.save_twist(twist, tmp_path / "half", dtype=torch.float16)
    whole, half = (
        (tmp_path / name / "twist.safetensors").stat().st_size for name in ("whole", "half")
    )
    assert half < 0.55 * whole
    loaded = tw.load_twist(tmp_path / "half", gpt2)
    for kept, value in zip(loaded.parameters(), twist.parameters(), strict=True):
        assert kept.dtype == torch.float32
        assert torch.equal(kept, value.half().float())


def test_weights_that_are_not_finite_are_not_saved(gpt2, tmp_path):
    twist = tw.LinearHeadTwist(gpt2)
    with torch.no_grad():
        twist.head.bias[3] = 1e6
    with pytest.raises(ValueError, match=r"head.bias are not finite in torch.float16"):
        tw.save_twist(twist, tmp_path / "twist", dtype=torch.float16)
    assert not (tmp_path / "twist").exists()
    with pytest.raises(ValueError, match="dtype must be one of"):
        tw.save_twist(twist, tmp_path / "twist", dtype=torch.int8)


def test_weights_that_are_not_finite_are_not_loaded(gpt2, tmp_path, monkeypatch):
    twist = tw.LinearHeadTwist(gpt2)
    with torch.no_grad():
        twist.head.bias[3] = torch.nan
    monkeypatch.setattr("torch.isfinite", lambda values: torch.ones_like(values, dtype=torch.bool))
    tw.save_twist(twist, tmp_path / "twist")
    monkeypatch.undo()
    with pytest.raises(TwistFormatError, match=r"head.bias of the twist in .* are not finite"):
        tw.load_twist(tmp_path / "twist", gpt2)


def test_a_second_save_replaces_the_first(gpt2, tmp_path):
    tw.save_twist(stir(tw.MLPHeadTwist(gpt2)), tmp_path)
    twist = stir(tw.LinearHeadTwist(gpt2), seed=2)
    tw.save_twist(twist, tmp_path)
    assert same_weights(tw.load_twist(tmp_path, gpt2), twist)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_save_leaves_the_old_twist_or_the_new_one(gpt2, tmp_path, monkeypatch):
    twist = stir(tw.LinearHeadTwist(gpt2))
    tw.save_twist(twist, tmp_path)
    write, calls = storage.write_atomically, []

    def failing(path):
        calls.append(path.name)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return write(path)

    monkeypatch.setattr(storage, "write_atomically", failing)
    old = copy.deepcopy(twist)
    stir(twist, seed=3)
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            tw.save_twist(twist, tmp_path)
        assert len(calls) == stop
        calls.clear()
        assert same_weights(tw.load_twist(tmp_path, gpt2), old)
    monkeypatch.setattr(storage, "write_atomically", write)
    monkeypatch.setattr("pathlib.Path.replace", stop_at_the_weights)
    with pytest.raises(KeyboardInterrupt):
        tw.save_twist(twist, tmp_path)
    assert same_weights(tw.load_twist(tmp_path, gpt2), twist)
    monkeypatch.undo()
    tw.save_twist(twist, tmp_path)
    tw.save_twist(old, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "twist.json", tmp_path)
    with pytest.raises(TwistFormatError, match=r"not of the same save as twist.json"):
        tw.load_twist(tmp_path, gpt2)


def stop_at_the_weights(path, place):
    if place.name == "twist.safetensors":
        raise KeyboardInterrupt
    path.rename(place)


def test_a_flipped_bit_never_loads_as_another_twist(gpt2, tmp_path):
    twist = stir(tw.LinearHeadTwist(gpt2))
    tw.save_twist(twist, tmp_path, history=[{"loss": 0.5}])
    dice, card = random.Random(0), tw.load_twist(tmp_path, gpt2).card
    for name in ("twist.json", "twist.safetensors"):
        data = (tmp_path / name).read_bytes()
        for _ in range(150):
            (tmp_path / name).write_bytes(flipped(data, dice.randrange(8 * len(data))))
            try:
                loaded = tw.load_twist(tmp_path, gpt2)
            except TwistFormatError:
                continue
            assert same_weights(loaded, twist)
            assert loaded.card == card
        (tmp_path / name).write_bytes(data)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("MLPHeadTwist", {"depth": 10**8}),
        ("MLPHeadTwist", {"width": 10**8}),
        ("LoRATwist", {"rank": 10**8}),
        ("LoRATwist", {"target_modules": "(a|aa)*x"}),
        ("LoRATwist", {"target_modules": [["c_fc"]]}),
        ("ConditionalHeadTwist", {"num_classes": 10**9}),
        ("TableHeadTwist", {"num_steps": 10**9}),
    ],
    ids=str,
)
def test_sizes_and_patterns_of_a_file_are_checked_before_anything_is_made(
    form, options, gpt2, tmp_path
):
    tw.save_twist(tw.LinearHeadTwist(gpt2), tmp_path)
    edited(tmp_path, form=form, options=options)
    with pytest.raises(TwistFormatError, match=f"do not make a {form}"):
        tw.load_twist(tmp_path, gpt2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_base_model_may_have_another_dtype(dtype, lm, checkpoint, tmp_path):
    twist = stir(tw.MLPHeadTwist(lm))
    tw.save_twist(twist, tmp_path)
    folder = checkpoint(lm.model.config.model_type)
    other = HuggingFaceLM.from_pretrained(folder, dtype=dtype)
    assert same_weights(tw.load_twist(tmp_path, other), twist)


def test_another_base_model_is_refused(gpt2, checkpoint, tmp_path):
    tw.save_twist(tw.LinearHeadTwist(gpt2), tmp_path / "twist")
    wide = make_checkpoint("gpt2", tmp_path / "wide", n_embd=64)
    large = make_checkpoint("gpt2", tmp_path / "large", vocab_size=70)
    scaled = HuggingFaceLM.from_pretrained(checkpoint("gpt2"))
    with torch.no_grad():
        next(scaled.model.parameters()).mul_(1.001)
    others = [
        (HuggingFaceLM.from_pretrained(checkpoint("llama")), "type of model gpt2, .* has llama"),
        (HuggingFaceLM.from_pretrained(wide), "width of the hidden state 32, .* has 64"),
        (HuggingFaceLM.from_pretrained(large), "vocabulary 62, .* has 70"),
        (tw.TabularLM.random(3, 4, seed=0), "kind of model HuggingFaceLM, .* has TabularLM"),
        (scaled, "same type and sizes but with other weights"),
    ]
    for lm, message in others:
        with pytest.raises(TwistFormatError, match=rf"belongs to another base model.*{message}"):
            tw.load_twist(tmp_path / "twist", lm)


def edited(card, **changes):
    path = card / "twist.json"
    card = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(card | {"sha256": storage._card_checksum(card)}))


def card_of(folder):
    return json.loads((folder / "twist.json").read_text())


def whole_again(folder, weights):
    (folder / "twist.safetensors").write_bytes(weights)
    edited(folder, weights_sha256=storage.checksum(weights))


def cut(path, kept):
    path.write_bytes(path.read_bytes()[:kept])


DAMAGES = {
    "card cut short": (lambda f: cut(f / "twist.json", 100), "does not describe a twist"),
    "card empty": (lambda f: cut(f / "twist.json", 0), "does not describe a twist"),
    "card no text": (lambda f: (f / "twist.json").write_bytes(b"\xff\xfe"), "does not describe"),
    "card a list": (lambda f: (f / "twist.json").write_text("[1]"), "does not describe a twist"),
    "foreign": (lambda f: edited(f, format="other"), "does not describe a twist"),
    "newer": (lambda f: edited(f, version=5), "format 5; this version .* format 4.* update"),
    "older": (lambda f: edited(f, version=3), "format 3; .* format 4.* train the twist again"),
    "unchecked": (
        lambda f: (f / "twist.json").write_text(
            json.dumps({k: v for k, v in card_of(f).items() if k != "sha256"})
        ),
        "checksum does not match",
    ),
    "too deep to parse": (
        lambda f: (f / "twist.json").write_text("[" * 10**5),
        "nested too deeply",
    ),
    "form a list": (lambda f: edited(f, form=[]), r"is a \[\] .* update"),
    "samples a number": (
        lambda f: edited(f, base_model=card_of(f)["base_model"] | {"samples": 3, "sha256": ""}),
        "with other weights",
    ),
    "version infinite": (
        lambda f: (f / "twist.json").write_text(json.dumps(card_of(f) | {"version": 1e999})),
        "does not describe a twist",
    ),
    "no tensors": (
        lambda f: whole_again(f, b"x" * 400),
        "damaged or cut short",
    ),
    "new form": (lambda f: edited(f, form="CubicTwist"), "is a CubicTwist .* update"),
    "no model": (lambda f: edited(f, base_model=None), "lacks base_model"),
    "no options": (lambda f: edited(f, options=[]), "lacks options"),
    "other options": (lambda f: edited(f, options={"rank": 3}), "do not make a LinearHeadTwist"),
    "other form": (
        lambda f: edited(f, form="MLPHeadTwist"),
        "do not make a MLPHeadTwist",
    ),
    "weights cut short": (lambda f: cut(f / "twist.safetensors", 300), "damaged or cut short"),
    "weights of another": (
        lambda f: (f / "twist.safetensors").write_bytes(b"x" * 400),
        "damaged or cut short",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage, gpt2, tmp_path):
    tw.save_twist(tw.LinearHeadTwist(gpt2), tmp_path)
    spoil, message = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(TwistFormatError, match=message):
        tw.load_twist(tmp_path, gpt2)


def test_missing_files_are_named(gpt2, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no twist in .*nowhere.*lacks twist.json"):
        tw.load_twist(tmp_path / "nowhere", gpt2)
    tw.save_twist(tw.LinearHeadTwist(gpt2), tmp_path / "twist")
    (tmp_path / "twist" / "twist.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks twist.safetensors"):
        tw.load_twist(tmp_path / "twist", gpt2)


def test_a_folder_may_be_moved(gpt2, tmp_path):
    tw.save_twist(tw.LinearHeadTwist(gpt2), tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "two")
    tw.load_twist(str(tmp_path / "two"), gpt2)


def test_what_does_not_learn_is_not_saved(gpt2, tmp_path):
    view = tw.ConditionalHeadTwist(gpt2, num_classes=2).condition(0)
    for twist in (view, tw.TableTwist.random(3, 2, seed=0)):
        with pytest.raises(TypeError, match=r"twist must be one of BodyTwist, .*; got"):
            tw.save_twist(twist, tmp_path)
