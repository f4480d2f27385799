"""NaN and infinite numbers of a model, twist or proposal are told by name, step and text."""

import math

import pytest
import torch
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets.errors import ModelOutputError
from tsmc_widgets.evaluation import all_prefixes, compare_log_psi, step_divergences
from tsmc_widgets.models import LMStep
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.twists import TableTwist
from tsmc_widgets.twists.protocol import TwistStep


class Broken:
    """A model whose answer is spoilt after the texts that end in a."""

    def __init__(self, value):
        self.inner, self.value = chain(), value

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def spoil(self, step, last):
        logits = step.log_probs.clone()
        logits[(last == 0).nonzero().squeeze(1)] = torch.tensor(self.value, dtype=logits.dtype)
        return LMStep(logits.log_softmax(-1), step.hidden, step.carry)

    def prefill(self, tokens):
        return self.spoil(self.inner.prefill(tokens), tokens[:, -1])

    def advance(self, tokens, carry):
        return self.spoil(self.inner.advance(tokens, carry), tokens)

    def log_prob(self, tokens, prompt_length):
        table = self.prefill(tokens[:, :prompt_length]).log_probs
        return table.gather(1, tokens[:, prompt_length:])


def run(lm, **options):
    target = tw.Target(lm, tw.Constant(), prompt="b", num_steps=4)
    return tw.run_smc(target, num_particles=32, **options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_is_named_with_step_and_text(value):
    message = r"The base model gave NaN at step 2, after the text 'ba'"
    with pytest.raises(ModelOutputError, match=message):
        run(Broken(value))
    target = tw.Target(Broken(value), tw.Constant(), prompt="b", num_steps=4)
    with pytest.raises(ModelOutputError, match="The base model gave NaN"):
        target.exact_samples(10, seed=0)
    with pytest.raises(ModelOutputError, match="The base model gave NaN for the token after"):
        tw.Target(Broken(value), tw.Constant(), prompt="a", num_steps=1).log_p(torch.tensor([[1]]))


def test_another_model_that_proposes_is_named():
    proposal = tw.ModelProposal(Broken(math.nan))
    with pytest.raises(ModelOutputError, match="The proposal gave NaN at step 2, after the text"):
        run(chain(), proposal=proposal)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("proposal", [tw.Base(), tw.TwistInduced()])
def test_a_twist_is_named_and_its_particles_are_not_called_dead(value, proposal):
    target = tw.Target(chain(), tw.Constant(), prompt="b", num_steps=3)

    class Twist:
        def prefill(self, tokens, lm_step):
            log_psi = torch.zeros_like(lm_step.log_probs)
            log_psi[:, 1] = value
            return TwistStep(log_psi, None)

        def advance(self, tokens, carry, lm_step):
            return self.prefill(tokens, lm_step)

        def log_psi(self, tokens, prompt_length):
            return torch.zeros(tokens.shape[0], tokens.shape[1] - prompt_length)

    found = "NaN" if math.isnan(value) else r"\+inf"
    with pytest.raises(ModelOutputError, match=f"The twist gave {found} at step 1, after the text"):
        tw.run_smc(target, num_particles=8, twist=Twist(), proposal=proposal)


def test_a_twist_is_named_where_its_quality_is_measured():
    target = tw.Target(chain(), tw.Constant(), prompt="b", num_steps=3)
    prefixes = all_prefixes(target)[1]

    class Twist:
        def log_psi(self, tokens, prompt_length):
            log_psi = torch.zeros(tokens.shape[0], tokens.shape[1] - prompt_length)
            return torch.where(tokens[:, prompt_length:] == 0, math.nan, log_psi)

    message = "The twist gave NaN or \\+inf at step 1, after the text 'a'"
    for measure in (
        lambda: compare_log_psi(target, Twist(), prefixes),
        lambda: step_divergences(target, Twist(), EnumeratedOracle(target)),
    ):
        with pytest.raises(ModelOutputError, match=message):
            measure()


def test_a_twist_may_rule_out_all_that_follows():
    target = tw.Target(chain(), tw.Constant(), prompt="b", num_steps=3)
    twist = TableTwist([torch.zeros((3,) * t) for t in (1, 2, 3)], prompt_length=1)
    twist.log_tables[1][0] = -math.inf
    trace = tw.run_smc(target, num_particles=64, twist=twist, rule="never")
    assert bool((trace.tokens[trace.weights > 0][:, 0] != 0).all())
