"""Texts that end at EOS are scored like any others, however many have ended before."""

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.evaluation.divergences import Sampler, score_texts


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_the_model(seed):
    target = tw.load_problem("eos").target()
    tokens = tw.exact(target).sample(20, seed)
    scores = score_texts(target, tokens, Sampler.of(None, None))
    assert torch.allclose(scores.log_p, target.log_p(tokens), atol=1e-12)
    assert torch.allclose(scores.log_q, scores.log_p, atol=1e-12)
