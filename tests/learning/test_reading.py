"""What the base model said is kept, and is what it would say again."""

import pytest
import torch
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets.learning.objectives import RECIPES
from tsmc_widgets.learning.samples import (
    TRAINING_RUNS,
    PoolReader,
    Samples,
    draw_samples,
    read,
    score,
)
from tsmc_widgets.twists import LinearHeadTwist
from tsmc_widgets.twists.bodies import BodyTwist


@pytest.fixture(scope="module")
def target(gpt2):
    return tw.Target(gpt2, tw.Constant(1.0), prompt=[1, 2], num_steps=4)


def random_tokens(size, seed=0):
    return torch.randint(0, 20, (size, 4), generator=torch.Generator().manual_seed(seed))


def assert_same(one, two):
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-5, rtol=0)
    if two.hidden is not None:
        torch.testing.assert_close(one.hidden, two.hidden, atol=1e-4, rtol=0)


def test_a_sweep_keeps_what_the_model_said(target):
    samples = draw_samples(target, num_particles=64, proposal=tw.Base(), seed=0, run=3)
    assert_same(samples.base, read(target, samples.tokens))
    trace = tw.run_smc(target, num_particles=64, rule="never", seed=0, first_run=TRAINING_RUNS + 3)
    assert torch.equal(samples.tokens, trace.paths("tokens")[0])


def test_a_model_without_states():
    target = tw.Target(chain(), tw.ContainsToken("c"), prompt="a", num_steps=3)
    samples = draw_samples(target, num_particles=8, proposal=tw.Base(), seed=0, run=0)
    assert samples.base.hidden is None
    assert_same(samples.base, read(target, samples.tokens))


def test_losses_of_log_psi_alone_need_no_base_model(target, monkeypatch):
    twist = BodyTwist(target.lm, head="mlp")
    torch.nn.init.normal_(twist.head[-1].weight, std=0.1)
    texts = Samples.exact(target, random_tokens(40))
    batch = score(target, twist, Samples.exact(target, random_tokens(40, seed=1)))
    whole = score(target, twist, texts)
    monkeypatch.setattr(target.lm, "teacher_force", None)
    short = score(target, twist, texts, p0=False)
    torch.testing.assert_close(short.log_psi, whole.log_psi)
    assert short.log_p.isnan().all()
    assert short.log_norm.isnan().all()
    for name, recipe in RECIPES.items():
        if not recipe.needs_positives:
            continue
        losses = [recipe.loss(positives, batch) for positives in (whole, short)]
        assert bool(losses[1].isnan()) == recipe.positives_with_p0, name
        if not recipe.positives_with_p0:
            torch.testing.assert_close(*losses)


@pytest.mark.parametrize("level", [0.0, 1e4])
def test_weights_are_summed_in_float64(target, level):
    """What p0 and the twist say in float32 has digits that a sum in float32 would round off."""
    twist = LinearHeadTwist(target.lm)
    torch.nn.init.normal_(twist.head.weight, std=0.3)
    torch.nn.init.constant_(twist.head.bias, level)
    samples = Samples.exact(target, random_tokens(40))
    found = score(target, twist, samples)
    tokens = torch.cat([target.prompt_tokens.expand(40, -1), samples.tokens], dim=1)
    log_psi = twist.log_psi_next(tokens, 2).double()
    exact = (read(target, samples.tokens).log_probs.double() + log_psi).logsumexp(-1)
    torch.testing.assert_close(found.log_norm, exact, rtol=0, atol=2e-7)


class TestPoolReader:
    def samples(self, pool, places):
        zeros = torch.zeros(len(places), dtype=torch.float64)
        return Samples.equal(pool[places], zeros, places=places)

    def test_it_says_what_the_model_says(self, target):
        pool, reader = random_tokens(250), PoolReader(target)
        for places in (torch.tensor([0, 249, 101, 101, 7]), torch.arange(250)):
            samples = self.samples(pool, places)
            assert_same(reader.answers(samples, pool).base, read(target, samples.tokens))

    def test_bytes_do_not_depend_on_what_was_asked_before(self, target):
        pool, used, fresh = random_tokens(250), PoolReader(target), PoolReader(target)
        for places in (torch.tensor([240, 3]), torch.tensor([120])):
            used.answers(self.samples(pool, places), pool)
        last = self.samples(pool, torch.tensor([5, 130, 245]))
        one, two = used.answers(last, pool).base, fresh.answers(last, pool).base
        assert torch.equal(one.log_probs, two.log_probs)
        assert torch.equal(one.hidden, two.hidden)

    def test_another_pool_is_read_anew(self, target):
        reader, places = PoolReader(target), torch.tensor([1, 2])
        reader.answers(self.samples(random_tokens(50), places), random_tokens(50))
        other = random_tokens(80, seed=1)
        samples = self.samples(other, places)
        assert_same(reader.answers(samples, other).base, read(target, samples.tokens))

    def test_a_pool_that_does_not_fit_is_left(self, target):
        pool = random_tokens(50)
        samples = self.samples(pool, torch.tensor([1]))
        assert PoolReader(target, most_bytes=10).answers(samples, pool).base is None
