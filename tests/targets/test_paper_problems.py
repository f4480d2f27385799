"""The paper's own experiments, on checkpoints of the same architectures with random weights."""

import math

import pytest
import torch
import transformers
from models.checkpoints import byte_tokenizer, make_checkpoint, make_classifier

import tsmc_widgets as tw
from tsmc_widgets.twists.forms import make_twist

STAR_NAMES = {index: f"{index + 1} star{'s' if index else ''}" for index in range(5)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each model of the paper."""
    root = tmp_path_factory.mktemp("checkpoints")
    bytes_ = {"tokenizer": byte_tokenizer(), "max_position_embeddings": 1000}
    gpt2 = {"tokenizer": byte_tokenizer(), "n_positions": 64}
    reward = make_classifier("roberta", root / "reward", num_labels=1, **bytes_)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(reward)
    with torch.no_grad():
        # Around the threshold of -5, so that some texts are on each side.
        model.classifier.out_proj.bias.fill_(-5.0)
    model.save_pretrained(reward)
    return {
        "roneneldan/TinyStories-33M": make_checkpoint("gpt_neo", root / "stories", **bytes_),
        "gpt2-medium": make_checkpoint("gpt2", root / "gpt2", **gpt2),
        "nicholasKluge/ToxicityModel": reward,
        "LiYuan/amazon-review-sentiment-analysis": make_classifier(
            "distilbert", root / "stars", num_labels=5, id2label=STAR_NAMES, **bytes_
        ),
        "bert": make_classifier("bert", root / "bert", num_labels=5, id2label=STAR_NAMES, **bytes_),
        "unnamed": make_classifier("bert", root / "unnamed", num_labels=5, **bytes_),
    }


def target_of(name, folders, **options):
    problem = tw.load_problem(name)
    judge = {"classifier": folders[problem.classifier]} if problem.classifier else {}
    return problem.target(folders[problem.model], **{**judge, **options})


@pytest.mark.parametrize("name", [name for name in tw.PROBLEMS if name.startswith("paper/")])
def test_problem_runs_from_folders(name, folders):
    problem = tw.load_problem(name)
    target = target_of(name, folders)
    assert target.num_steps == problem.num_steps
    twist = make_twist(problem.form, target)
    if target.is_conditional:
        samples = target.exact_samples(2, seed=0, progress=False)
        twist, target = (part.condition(samples.observed[0]) for part in (twist, target))
    trace = tw.run_smc(
        target, num_particles=3, proposal=tw.TwistInduced(), twist=twist, dead_runs="keep"
    )
    assert math.isfinite(trace.log_z) or name == "paper/toxicity-threshold"


def rewards(folders, target, tokens):
    judge = tw.load_classifier(folders["nicholasKluge/ToxicityModel"])
    return judge.logits(target.full_texts(tokens))[:, 0].double()


def some_tokens(target, count=40):
    generator = torch.Generator().manual_seed(0)
    shape = (count, target.num_steps)
    return torch.randint(target.lm.vocab_size, shape, generator=generator)


def test_low_rewards_are_toxic(folders):
    target = target_of("paper/toxicity", folders)
    tokens = some_tokens(target)
    r = rewards(folders, target, tokens)
    expected = (1 - r.sigmoid()).log()
    assert torch.allclose(target.log_phi(tokens), expected, atol=1e-6)
    sharp = tw.load_problem("paper/story-beta-10").potential(target.potential.classifier)
    assert sharp.beta == 10


def test_the_threshold_is_from_above(folders):
    target = target_of("paper/toxicity-threshold", folders)
    tokens = some_tokens(target)
    allowed = rewards(folders, target, tokens) <= -5
    assert 0 < int(allowed.sum()) < len(tokens)
    assert ((target.log_phi(tokens) == 0) == allowed).all()


@pytest.mark.parametrize("judge", ["LiYuan/amazon-review-sentiment-analysis", "bert", "unnamed"])
def test_one_star_is_the_first_class(judge, folders):
    folder = folders[judge]
    target = target_of("paper/sentiment", folders, classifier=folder)
    tokens = some_tokens(target, 8)
    logits = tw.load_classifier(folder).logits(target.full_texts(tokens)).double()
    assert torch.allclose(target.log_phi(tokens), logits.log_softmax(-1)[:, 0], atol=1e-6)
    happy = target_of("paper/reviews-beta-100", folders, classifier=folder)
    tokens = some_tokens(happy, 8)
    logits = tw.load_classifier(folder).logits(happy.full_texts(tokens)).double()
    assert torch.allclose(happy.log_phi(tokens), 100 * logits.log_softmax(-1)[:, 4], atol=1e-4)


def test_what_cannot_be_fetched_is_said_at_once(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="roneneldan/TinyStories-33M"):
        tw.load_problem("paper/toxicity").target()


def test_models_are_loaded_once(folders):
    first = target_of("paper/toxicity", folders)
    second = target_of("paper/infilling-2-1", folders)
    assert first.lm is second.lm
