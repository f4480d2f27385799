import pytest
import torch
from models.checkpoints import byte_tokenizer, make_checkpoint, make_classifier

from tsmc_widgets.errors import ContextLengthError, UnknownTokenError
from tsmc_widgets.models.loading import load_classifier, load_language_model
from tsmc_widgets.targets import (
    AvoidsWord,
    ClassConditional,
    ClassProbability,
    ContainsToken,
    ContainsWord,
    Continuation,
    Infilling,
    Length,
    RewardThreshold,
    Target,
)
from tsmc_widgets.testing import check_potential

STARS = {"num_labels": 5, "id2label": {i: f"{i + 1} star{'s' * (i > 0)}" for i in range(5)}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "lm": make_checkpoint("gpt2", root / "lm"),
        "bytes": make_checkpoint("llama", root / "bytes", tokenizer=byte_tokenizer()),
        "stars": make_classifier("gpt2", root / "stars", **STARS),
        "tone": make_classifier("bert", root / "tone", num_labels=1),
    }


@pytest.fixture(scope="module")
def lm(folders):
    return load_language_model(folders["lm"])


@pytest.mark.parametrize("eos", ["ignore", "absorb"])
def test_potentials_keep_the_contract_on_transformers(folders, lm, eos):
    stars = folders["stars"]
    for phi in [
        AvoidsWord("broke") * ClassProbability(stars, label=5) ** 2.0,
        ContainsToken("fox", ["the", "little"]),
        RewardThreshold(folders["tone"], at_most=0.0),
        Continuation("the fox"),
        Length(at_most=2),
    ]:
        check_potential(phi, lm, prompt="i bought this", eos=eos, num_rows=8, tolerance=1e-4)


def test_a_named_classifier_by_label(folders, lm):
    phi = ClassProbability(folders["stars"], label=5)
    assert phi.describe() == "p(5 stars | text)"
    assert phi == ClassProbability(str(folders["stars"]), label="5 stars")
    assert ClassConditional(folders["stars"]).describe() == "p(class of stars | text)"
    target = Target(lm, phi, prompt="i bought this", num_steps=3)
    tokens = torch.randint(len(lm.tokenizer), (6, 3), generator=torch.Generator().manual_seed(0))
    logits = load_classifier(folders["stars"]).logits(target.full_texts(tokens)).double()
    torch.testing.assert_close(
        target.log_phi(tokens), logits.log_softmax(-1)[:, 4], rtol=0, atol=1e-4
    )


def test_log_p_and_infilling_agree_with_one_long_pass(folders):
    lm = load_language_model(folders["lm"], dtype=torch.float64)
    target = Target(lm, Infilling(num_tokens=2), prompt="once upon", num_steps=3)
    samples = target.exact_samples(5, seed=0)
    prompt = target.prompt_tokens.expand(5, -1)
    full = torch.cat([prompt, samples.tokens, samples.observed], dim=1)
    log_p = lm.log_prob(full, 2).detach().double()
    torch.testing.assert_close(target.log_p(samples.tokens), log_p[:, :3].sum(-1))
    given = target.log_phi_given(samples.tokens, samples.observed)
    torch.testing.assert_close(given, log_p[:, 3:].sum(-1))


def test_exact_samples(lm):
    target = Target(lm, ContainsWord("fox"), prompt="once upon", num_steps=4)
    samples = target.exact_samples(20, seed=0, progress=False)
    assert all("fox" in text for text in target.texts(samples.tokens))


def test_a_prompt_that_ends_within_a_character(folders):
    lm = load_language_model(folders["bytes"])
    whole = lm.encode("ü")
    assert len(whole) == 2
    target = Target(lm, ContainsToken(0), prompt=whole[:1], num_steps=2)
    tokens = torch.tensor([[whole[1], whole[0]], [lm.encode("a")[0], lm.encode("b")[0]]])
    alone = [target.texts(tokens[i : i + 1])[0] for i in range(2)]
    assert target.texts(tokens) == alone


def test_errors(lm):
    phi = ContainsWord("fox")
    with pytest.raises(ValueError, match="prompt is empty"):
        Target(lm, phi, prompt="", num_steps=2)
    with pytest.raises(UnknownTokenError, match="dragon"):
        Target(lm, phi, prompt="the dragon", num_steps=2)
    with pytest.raises(ContextLengthError, match="make 33, and this model's context holds 32"):
        Target(lm, phi, prompt="once upon a", num_steps=30)
