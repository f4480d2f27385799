import numpy as np
import pytest
import torch
from targets.toys import Stars, Tone, every, letters
from torch.nn.functional import logsigmoid

from tsmc_widgets.targets import (
    ClassConditional,
    ClassProbability,
    RewardThreshold,
    Target,
    TemperedReward,
)
from tsmc_widgets.targets.classifier import CachedClassifier, class_index, own_caches

TOKENS = every(3, 3)


def target(phi):
    return Target(letters(), phi, prompt="b", num_steps=3)


def named(*labels):
    classifier = Stars()
    classifier.labels = labels
    return CachedClassifier(classifier, "stars")


@pytest.mark.parametrize("label", [2, "2 stars", "2 STARS"])
def test_probability_of_a_class(label):
    t = target(ClassProbability(Stars(), label=label))
    texts = t.full_texts(TOKENS)
    wanted = Stars().logits(texts).double().log_softmax(-1)[:, 1]
    torch.testing.assert_close(t.log_phi(TOKENS), wanted)
    assert t.potential.describe() == "p(2 stars | text)"
    assert t.potential.log_phi_max == 0


def test_scalar_logit_both_ways():
    texts = target(ClassProbability(Tone(), label=1)).full_texts(TOKENS)
    logits = Tone().logits(texts).double()[:, 0]
    for label, wanted in [
        (1, logsigmoid(logits)),
        ("high", logsigmoid(logits)),
        (0, logsigmoid(-logits)),
        ("low", logsigmoid(-logits)),
    ]:
        t = target(ClassProbability(Tone(), label=label))
        torch.testing.assert_close(t.log_phi(TOKENS), wanted)
    assert t.potential.describe() == "p(low | text)"


def test_a_named_scalar_has_its_name_and_its_contrary():
    hostile = named("hostile")
    assert [class_index(label, hostile) for label in (0, 1, "hostile", "low", "not hostile")] == [
        0, 1, 1, 0, 0,
    ]  # fmt: skip
    assert ClassProbability(hostile, label="low").describe() == "p(not hostile | text)"


def test_numbers_are_names_first_and_indices_where_no_name_has_a_number():
    assert class_index(1, named("1 star", "2 stars", "3 stars")) == 0
    assert class_index(1, named("bad", "mixed", "good")) == 1
    assert class_index(10, named("1 star", "10 stars", "100 stars")) == 1
    assert class_index(2, named("LABEL_0", "LABEL_1", "LABEL_2")) == 2
    for label, classes in [
        (0, ("1 star", "2 stars", "3 stars")),
        (1, ("1 good", "1 bad", "2")),
        (3, ("bad", "mixed", "good")),
        (-1, ("bad", "mixed", "good")),
        ("awful", ("bad", "mixed", "good")),
        (True, ("bad", "mixed", "good")),
        ("BAD", ("bad", "Bad", "good")),
        (1, ("1.5 stars", "2 stars", "3 stars")),
    ]:
        with pytest.raises(ValueError, match=r"of the classes of stars: .* Give one of these"):
            class_index(label, named(*classes))


def test_potentials_on_one_classifier_read_each_text_once():
    stars = Stars()
    for label in (1, 2, 3):
        t = target(ClassProbability(stars, label=label))
        t.log_phi(TOKENS)
        t.log_phi(TOKENS)
    assert len(stars.read) == len(TOKENS)
    assert ClassProbability(stars, label=1) == ClassProbability(stars, label="1 star")
    assert ClassProbability(stars, label=1) != ClassProbability(stars, label=2)


def test_the_cache_goes_with_the_classifier():
    import gc
    import weakref

    stars = Stars()
    gone = weakref.ref(stars)
    target(ClassProbability(stars, label=1)).log_phi(TOKENS)
    del stars
    gc.collect()
    assert gone() is None


def test_scope():
    stars = Stars()
    target(ClassProbability(stars, label=1, scope="continuation")).log_phi(TOKENS[:1])
    assert stars.read == ["aaa"]


def test_class_conditional():
    phi = ClassConditional(Stars())
    t = target(phi)
    assert t.is_conditional
    observed = torch.arange(len(TOKENS)).unsqueeze(1) % 3
    given = t.log_phi_given(TOKENS, observed)
    for index, label in enumerate(["1 star", "2 STARS", "3 stars"]):
        for fixed in (t.condition(label), t.condition(torch.tensor([index]))):
            assert fixed.potential == ClassProbability(phi.classifier, label=label)
            rows = observed[:, 0] == index
            torch.testing.assert_close(given[rows], fixed.log_phi(TOKENS)[rows])
    total = sum(t.condition([index]).log_phi(TOKENS).exp() for index in range(3))
    torch.testing.assert_close(total, torch.ones_like(total))


def test_an_observed_class_is_an_index_and_never_a_guess():
    t = target(ClassConditional(Stars()))
    row = t.exact_samples(5, seed=0, progress=False).observed[2]
    name = t.potential.classes[int(row)]
    for observed in (row, row[0], row.numpy(), row.tolist(), name, name.upper()):
        assert t.condition(observed).potential.label == name
    for bare in (1, 0, np.int64(1), 7):
        with pytest.raises(ValueError, match=r"name or its index.*'1 star'.*torch\.tensor\(\["):
            t.condition(bare)
    for wrong in (
        [3],
        torch.tensor([-1]),
        [0, 1],
        torch.tensor([0.5]),
        torch.zeros(0).long(),
        [True],
    ):
        with pytest.raises(ValueError, match="one index from 0 to 2 of the classes of Stars"):
            t.condition(wrong)
    with pytest.raises(ValueError, match=r"of the classes of Stars.* Give one of these"):
        t.condition("4 stars")


def test_a_bare_number_is_an_index_where_no_name_begins_with_one():
    moods = target(ClassConditional(named("bad", "mixed", "good")))
    tone = target(ClassConditional(Tone()))
    for index in (0, 1, 2):
        for observed in (index, np.int64(index), [index], torch.tensor(index)):
            assert moods.condition(observed).potential.index == index
    assert tone.condition(1).potential.label == "high"
    with pytest.raises(ValueError, match="one index from 0 to 2"):
        moods.condition(3)
    halves = target(ClassConditional(named("0.5 stars", "1.5 stars", "2.5 stars")))
    with pytest.raises(ValueError, match="name or its index"):
        halves.condition(1)


def test_numbers_of_numpy_name_a_class_like_pythons():
    for number in (np.int64(2), np.uint8(2), torch.tensor(2)):
        assert ClassProbability(Stars(), label=number).label == "2 stars"


def test_a_misspelt_classifier_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"^model must .*'storybook/star'.*mean 'storybook/stars'"):
        ClassProbability("storybook/star", label=5)
    with pytest.raises(ValueError, match=r"^model must be one of storybook/stars, storybook/hosti"):
        ClassConditional("storybook/lm")
    with pytest.raises(ValueError, match=r"^reward must .*Did you mean 'storybook/hostility'"):
        RewardThreshold("storybook/hostile", at_most=0)
    with pytest.raises(ValueError, match=r"got 'storybook'\.$"):
        TemperedReward("storybook", beta=1)


def test_potentials_made_apart_share_no_answers():
    stars = Stars()
    ClassProbability(stars, label="1 star").log_phi_of_texts(["a"])
    ClassProbability(stars, label="2 stars").log_phi_of_texts(["a"])
    assert stars.read == ["a"]
    with own_caches():
        apart = ClassProbability(stars, label="1 star")
    apart.log_phi_of_texts(["a"])
    ClassProbability(stars, label="3 stars").log_phi_of_texts(["a"])
    assert stars.read == ["a", "a"]
