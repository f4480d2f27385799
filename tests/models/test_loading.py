"""Models by name: what is cached, what a classifier answers, what is told where it fails."""

import os
import socket
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models.checkpoints import make_checkpoint, make_classifier, word_tokenizer

from tsmc_widgets.errors import MissingExtraError, UnsupportedModelError
from tsmc_widgets.models import (
    HuggingFaceLM,
    TextClassifier,
    load_classifier,
    load_language_model,
    loading,
)
from tsmc_widgets.models.checkpoint import check_fetchable
from tsmc_widgets.targets.classifier import cached_classifier

PARTS = {
    "storybook": ("load_language_model", load_language_model),
    "storybook/hostility": ("load_classifier", load_classifier),
}
TEXTS = ["a fox", "once upon a time there was a little old bear who liked the king .", "sad", "a"]


@pytest.fixture
def lookups(monkeypatch):
    """Hosts that were asked for, on a machine without a network."""
    asked = []

    def fail(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"transformers.*tsmc-widgets\[hf\]"):
        load_language_model(tmp_path)


def test_the_same_name_loads_once(tmp_path):
    folder = make_checkpoint("gpt2", tmp_path)
    lm = load_language_model(folder)
    assert load_language_model(str(folder)) is lm
    assert load_language_model(folder, device="cpu") is lm
    assert load_language_model(folder, max_rows=2) is not lm


def scaled(model, factor):
    """Multiply a model's weights in place."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor)
    return model


def test_a_folder_that_was_written_again_is_read_again(tmp_path):
    folder = make_checkpoint("gpt2", tmp_path)
    lm = load_language_model(folder)
    ids = torch.tensor([[3, 4, 5]])
    before = lm.prefill(ids).log_probs
    other = HuggingFaceLM.from_pretrained(folder).model
    scaled(other, 1.5).save_pretrained(folder)
    again = load_language_model(folder)
    assert again is load_language_model(str(folder))
    assert torch.equal(lm.prefill(ids).log_probs, before)
    with torch.no_grad():
        expected = other(ids).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(again.prefill(ids).log_probs, expected)
    assert not torch.allclose(again.prefill(ids).log_probs, before, atol=1e-2)


def test_a_classifier_written_again_is_read_again_and_none_of_its_answers_is_kept(tmp_path):
    folder = make_classifier("gpt2", tmp_path)
    before = cached_classifier(load_classifier(folder)).logits(TEXTS)
    other = TextClassifier.from_pretrained(folder)
    scaled(other.model, 1.5).save_pretrained(folder)
    after = cached_classifier(load_classifier(folder)).logits(TEXTS)
    torch.testing.assert_close(after, other.logits(TEXTS).double())
    assert not torch.allclose(after, before, atol=1e-2)


def test_one_name_in_another_working_folder_is_another_checkpoint(tmp_path, monkeypatch):
    for name in ("here", "there"):
        folder = make_checkpoint("gpt2", tmp_path / name / "lm")
        for file in folder.iterdir():
            os.utime(file, ns=(10**18, 10**18))
    monkeypatch.chdir(tmp_path / "here")
    lm = load_language_model("lm")
    monkeypatch.chdir(tmp_path / "there")
    assert load_language_model("lm") is not lm


def test_half_precision_on_disk_is_float32_on_the_cpu(tmp_path):
    folder = make_checkpoint("gpt2", tmp_path, dtype=torch.float16)
    assert load_language_model(folder).model.dtype == torch.float32
    assert load_language_model(folder, dtype="auto").model.dtype == torch.float16


@pytest.mark.parametrize("name", ["storybok", "Storybook", "story-book"])
def test_a_misspelled_shipped_name_is_told_without_asking_the_hub(name, lookups):
    with pytest.raises(FileNotFoundError, match=rf"{name}'.*Did you mean 'storybook'.*ships"):
        load_language_model(name)
    assert lookups == []


@pytest.mark.parametrize("name", PARTS)
def test_a_name_that_may_be_on_the_hub_is_not_tried_again_and_again(name, lookups):
    misspelled = name.replace("book", "bok") if "/" in name else "no/such-model"
    text, load = PARTS[name]
    meant = rf"Did you mean '{name}'.*{text}\('" if "/" in name else "Use 'storybook'"
    with pytest.raises(FileNotFoundError, match=rf"'{misspelled}'.*is there a network.*{meant}"):
        load(misspelled)
    # With tries again for each file there were a dozen; the hub's client may look up one itself.
    assert len(lookups) <= 2


def test_a_name_that_the_hub_lacks(monkeypatch):
    import huggingface_hub

    def answer(status, kind):
        request = types.SimpleNamespace(url="https://hub", method="HEAD")
        response = types.SimpleNamespace(headers={}, request=request, status_code=status)
        error = kind("Nothing here.", response=response)

        def ask(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)

    answer(404, huggingface_hub.errors.RepositoryNotFoundError)
    with pytest.raises(FileNotFoundError, match="none on the model hub that you may read"):
        check_fetchable("no/such-model")
    for kind in (huggingface_hub.errors.GatedRepoError, huggingface_hub.errors.HfHubHTTPError):
        answer(403, kind)
        check_fetchable("an/owner")


def test_a_cached_name_needs_no_hub(lookups, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/a/file")
    check_fetchable("an/owner")
    assert lookups == []


def test_a_folder_that_is_not_there_is_told_without_asking_the_hub(tmp_path, lookups):
    for name in (tmp_path / "none", "./none", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no folder of this name here"):
            load_language_model(name)
    assert lookups == []


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkpoint: it has no config"):
        load_classifier(tmp_path)


def test_a_checkpoint_of_another_kind_never_gets_random_weights(tmp_path):
    classifier = make_classifier("gpt2", tmp_path / "classifier")
    lm = make_checkpoint("gpt2", tmp_path / "lm")
    with pytest.raises(UnsupportedModelError, match=r"lacks the weights score.weight"):
        load_classifier(lm)
    bert = make_classifier("bert", tmp_path / "bert")
    with pytest.raises(UnsupportedModelError, match="lacks the weights"):
        load_language_model(bert)
    assert load_classifier(classifier).num_labels == 2


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
@pytest.mark.parametrize("max_tokens", [None, 1, 20])
def test_a_texts_logits_do_not_depend_on_its_companions(architecture, max_tokens, tmp_path):
    folder = make_classifier(
        architecture, tmp_path, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}
    )
    classifier = load_classifier(folder, max_tokens=max_tokens)
    assert classifier.labels == ["a", "b", "c"]
    together = classifier.logits(TEXTS)
    assert together.shape == (4, 3)
    assert together.dtype == torch.float32
    for text, logits in zip(TEXTS, together, strict=True):
        encoded = classifier.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            alone = classifier.model(**encoded).logits[0]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_long_and_empty_texts(tmp_path):
    classifier = load_classifier(make_classifier("gpt2", tmp_path, num_labels=1))
    words = ["fox", "bear"] * 30
    logits = classifier.logits([" ".join(words), " ".join(words[:32]), ""])
    assert classifier.context_length == 32
    torch.testing.assert_close(logits[0], logits[1])
    assert bool(logits.isfinite().all())
    assert classifier.logits([]).shape == (0, 1)


def test_a_classifier_must_not_be_in_training_mode(tmp_path):
    classifier = TextClassifier.from_pretrained(make_classifier("bert", tmp_path))
    for part, name in ((classifier.model.dropout, "part 'dropout'"), (classifier.model, "model")):
        part.train()
        with pytest.raises(RuntimeError, match=f"The model's {name}|The {name} is in training"):
            classifier.logits(["a fox"])


def test_a_classifier_needs_a_padding_token(tmp_path):
    classifier = TextClassifier.from_pretrained(make_classifier("gpt2", tmp_path))
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    classifier.model.config.pad_token_id = None
    with pytest.raises(UnsupportedModelError, match="no padding token"):
        TextClassifier(classifier.model, tokenizer)


@pytest.mark.parametrize("name", ["storybook", "storybook/stars"])
def test_shipped_names_are_no_folders_of_the_reader(name, tmp_path, monkeypatch):
    from tsmc_widgets.models import storybook

    shipped = make_checkpoint("gpt2", tmp_path / "shipped")
    make_classifier("gpt2", tmp_path / "shipped" / "stars")
    monkeypatch.setattr(storybook, "path", lambda part: shipped / ("" if part == "lm" else part))
    (tmp_path / "storybook").mkdir()
    monkeypatch.chdir(tmp_path)
    load = load_classifier if "/" in name else load_language_model
    assert load(name) is load(name)
    with pytest.raises(FileNotFoundError, match="has no config"):
        load_language_model("./storybook")


def test_two_threads_share_one_whole_model():
    loading._loaded.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(lambda _: load_language_model("storybook"), range(4)))
    assert len({id(model) for model in models}) == 1
    assert models[0].encode("I bought this")
