"""VADER's sentiment as a classifier: its score is the logit, under either name."""

import pytest
import torch

import tsmc_widgets as tw

TEXTS = ["The movie was great!", "The movie was not great.", "The movie was.", ""]


def test_the_logit_is_the_compound_score():
    vader = pytest.importorskip("vaderSentiment.vaderSentiment")
    analyser = vader.SentimentIntensityAnalyzer()
    scores = [analyser.polarity_scores(text)["compound"] for text in TEXTS]
    positive = tw.load_classifier("vader/positive")
    assert positive.labels == ["positive"]
    assert positive.logits(TEXTS).squeeze(1).tolist() == scores
    assert torch.equal(tw.load_classifier("vader/negative").logits(TEXTS), -positive.logits(TEXTS))
    assert scores[0] > 0.5 > scores[1]
    assert tw.load_classifier("vader/positive") is positive


def test_an_unknown_sentiment_says_what_there_is():
    with pytest.raises(ValueError, match="positive, negative; got 'glad'"):
        tw.load_classifier("vader/glad")


def test_potentials_of_its_score():
    problem = tw.load_problem("happy-review")
    phi = problem.own_potential()
    assert (phi.describe(), phi.log_phi_max) == ("exp(5 positive(text))", 5.0)
    assert problem.form == "tied head"
    lm = tw.load_language_model("storybook")
    texts = torch.tensor(
        [lm.encode(text) for text in ("I bought this and I love", "I bought this and I hate")]
    )
    for phi, expected in (
        (tw.RewardThreshold("vader/negative", at_least=0.1), [-float("inf"), 0.0]),
        (tw.ClassProbability("vader/positive", label="high") ** 2, None),
    ):
        target = tw.Target(lm, phi, prompt="I bought this", num_steps=3)
        log_phi = target.log_phi(texts[:, 3:])
        assert float(log_phi[0]) != float(log_phi[1])
        assert expected is None or log_phi.tolist() == expected
