"""Heads tied to the output embedding: sums over the vocabulary, gradients, scores, files."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import transformers
from learning.trainers import parameters, resumed
from models.checkpoints import make_checkpoint
from twists.forms import stir

import tsmc_widgets as tw
from tsmc_widgets.learning import trainer as trainer_module
from tsmc_widgets.learning.samples import _terms, draw_samples, score
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.models import HuggingFaceLM
from tsmc_widgets.twists import forms
from tsmc_widgets.twists.tied import ScoredStates, TiedHead

METHODS = ("ctl", "rl", "dpg", "sixo", "nvi", "ppo", "rl_sigma", "cd")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = make_checkpoint("llama", tmp_path_factory.mktemp("lm"))
    return HuggingFaceLM.from_pretrained(folder)


def vowels(text):
    return 0.3 * sum(text.count(each) for each in "aeiou")


@pytest.fixture(scope="module")
def target(lm):
    return tw.Target(lm, tw.TextFunction(vowels), prompt="once upon a", num_steps=5)


def make(target, **options):
    return stir(tw.TiedHeadTwist(target.lm, width=8, **{"scored": target, **options}))


@pytest.mark.parametrize("scored", [False, True], ids=["state alone", "with phi so far"])
@pytest.mark.parametrize("link", ["log", "sigmoid"])
def test_sums_have_the_values_and_gradients_of_whole_tables(target, scored, link):
    twist = make(target, link=link, scored=target if scored else None)
    proposal = tw.TwistInduced(twist)
    batch = draw_samples(target, num_particles=12, proposal=proposal, seed=0, run=0, twist=twist)
    assert (batch.sums is None) == (link == "sigmoid")
    assert batch.base is None or link == "sigmoid"
    bare = replace(batch, sums=None, base=None)
    weights = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1)).double()

    def gradients(log_psi, log_norm):
        twist.zero_grad()
        (weights[0] * log_psi + weights[1] * log_norm).sum().backward()
        return [parameter.grad.clone() for parameter in twist.parameters()]

    log_psi, log_p, log_norm = _terms(target, twist, bare, True)
    expected = gradients(log_psi, log_norm)
    for samples in (batch, bare):
        found = score(target, twist, samples)
        for one, other in ((found.log_psi, log_psi), (found.log_p, log_p)):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-5)
        torch.testing.assert_close(found.log_norm, log_norm, rtol=2e-6, atol=2e-5)
        for one, other in zip(gradients(found.log_psi, found.log_norm), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_after_a_step_a_sum_is_read_from_tokens_of_the_q_that_drew(target):
    twist, count = make(target), 40_000
    batch = draw_samples(
        target, num_particles=12, proposal=tw.TwistInduced(twist), seed=0, run=0, twist=twist,
        others=count,
    )  # fmt: skip
    stir(twist, seed=5)
    found = score(target, twist, batch)
    log_psi, _, log_norm = _terms(target, twist, replace(batch, sums=None), True)
    torch.testing.assert_close(found.log_psi, log_psi, rtol=2e-6, atol=2e-5)
    change = (twist.head.direction(batch.sums.inputs) - batch.sums.was).unsqueeze(-2)
    moved = twist.head.values(change, batch.sums.others)
    ratio = moved.exp() / moved.exp().mean(-1, keepdim=True) - moved
    z = (found.log_norm - log_norm) / ratio.std(-1) * count**0.5
    assert float(z.abs().max()) < 5
    first_order = replace(batch, sums=replace(batch.sums, others=None))
    wrong = score(target, twist, first_order).log_norm - log_norm
    assert float((wrong / ratio.std(-1) * count**0.5).abs().max()) > 5


@pytest.mark.parametrize("scored", [False, True])
def test_gradients_are_those_of_finite_differences(lm, scored):
    scores = torch.randn(lm.vocab_size) if scored else None
    head = TiedHead(lm, 8, width=4, depth=1, seed=0, scores=scores).double()
    object.__setattr__(head, "embedding", head.embedding.double())
    torch.nn.init.normal_(head.last.weight, std=5.0)
    states = torch.randn(3, 8, dtype=torch.float64)
    log_p = torch.randn(3, lm.vocab_size).double().log_softmax(-1)

    def log_norm(weight):
        parameters = {"last.weight": weight}
        return torch.func.functional_call(head, parameters, states).add(log_p).logsumexp(-1)

    weight = head.last.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(log_norm, weight)
    log_norm(weight).sum().backward()
    q = (head(states) + log_p).softmax(-1).detach()
    head.zero_grad()
    (head.direction(states) * head.mean_embedding(q)).sum().backward()
    torch.testing.assert_close(head.last.weight.grad, weight.grad, rtol=1e-9, atol=1e-12)


def learner(target, **options):
    numbers = {"batch_size": 8, "steps": 6, "learning_rate": 0.02, "seed": 3} | options
    return TwistTrainer(target, make(target), method="rl", **numbers)


class TestPastBatches:
    """Every other later step of a tied head is on one of the last batches."""

    def test_a_file_is_resumed_to_the_byte(self, target, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer_module, "PAST", 3)
        resumed(lambda: learner(target), tmp_path / "training", 5, 3)

    def test_an_update_that_broke_off_leaves_them(self, target):
        whole, broken = learner(target), learner(target)
        list(whole.updates(4))
        list(broken.updates(3))
        steps = iter(range(3))
        step = broken._optimiser.step

        def interrupted():
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return step()

        broken._optimiser.step = interrupted
        with pytest.raises(KeyboardInterrupt):
            broken.update()
        broken._optimiser.step = step
        broken.update()
        assert torch.equal(parameters(broken), parameters(whole))

    def test_they_are_the_last_ones_and_half_of_the_later_steps(self, target, monkeypatch):
        monkeypatch.setattr(trainer_module, "PAST", 4)
        read, batches = [], []
        trainer = learner(target, steps=9)
        descend, draw = trainer._descend, trainer._batches.draw
        trainer._batches.draw = lambda *address: batches.append(draw(*address)) or batches[-1]
        trainer._descend = lambda batch, at_sigma: read.append(batch) or descend(batch, at_sigma)
        list(trainer.updates(20))
        rank = [[next(i for i, b in enumerate(batches) if b[0] is each) for each in update]
                for update in (read[at : at + 9] for at in range(0, 180, 9))]  # fmt: skip
        assert all(set(update[0::2]) == {number} for number, update in enumerate(rank))
        ages = [number - each for number, update in enumerate(rank) for each in update[1::2]]
        assert set(ages) == {0, 1, 2, 3}

    def test_a_loss_of_a_past_batch_is_that_of_whole_tables(self, target, monkeypatch):
        """After other updates its sum over the vocabulary is what tables of all tokens give."""
        monkeypatch.setattr(trainer_module, "OTHERS", 20_000)
        trainer = learner(target, batch_size=4, learning_rate=2e-4, averaging=0)
        list(trainer.updates(5))
        past = trainer._past[0]
        bare = replace(past, sums=None, base=None)
        with torch.no_grad():
            found, expected = (score(target, trainer.twist, each) for each in (past, bare))
        # How far the distribution of the next token has moved, b and its level left out.
        moved = expected.log_q_psi - past.log_q
        torch.testing.assert_close(found.log_psi, expected.log_psi, rtol=1e-5, atol=1e-5)
        error = (found.log_norm - expected.log_norm).abs().max()
        assert float(moved.abs().max()) > 0.1
        assert float(error) < 0.03 * float(moved.abs().max()), (error, moved.abs().max())


@pytest.mark.parametrize(("method", "steps"), [*((each, 1) for each in METHODS), ("rl", 4)])
def test_every_method_takes_the_steps_of_whole_tables(target, method, steps, monkeypatch):
    """Two updates with sums, and two by tables of all tokens, end at the same parameters."""

    def trained():
        twist = make(target)
        trainer = TwistTrainer(
            target, twist, method=method, batch_size=16, steps=steps, learning_rate=0.02, seed=3
        )
        for _ in trainer.updates(2):
            pass
        return values(twist)

    def values(twist):
        # Some losses leave b free: its gradient is rounding, of which Adam makes whole steps.
        head = twist.head
        for each in (head.last.weight.data[-1], head.last.bias.data[-1], head.by_score.data):
            each.zero_()
        return [parameter.detach().clone() for parameter in twist.parameters()]

    monkeypatch.setattr("tsmc_widgets.learning.trainer.OTHERS", 4000)
    monkeypatch.setattr("tsmc_widgets.learning.trainer.PAST", 1)  # Tables are not kept.
    start = values(make(target))
    found = trained()
    monkeypatch.setattr(tw.TiedHeadTwist, "is_tied", False)
    for one, other, first in zip(found, trained(), start, strict=True):
        moved = float((one - first).abs().max())
        near = 1e-2 if steps == 1 else 5e-2  # Later steps read sums from a few tokens.
        torch.testing.assert_close(one, other, rtol=0, atol=near * moved)


def test_one_step_moves_log_psi_alike_at_every_width(lm):
    """Which is what the layers' division by their inputs is for."""
    moves = []
    for width in (16, 1024):
        head = TiedHead(lm, 8, width=width, depth=1, seed=0)
        optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
        states = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
        value = head(states)[0, 3]
        value.backward()
        optimiser.step()
        moves.append(float((head(states)[0, 3] - value).detach()))
    assert 0.5 < moves[0] / moves[1] < 2


def test_a_scored_head_knows_what_the_text_so_far_has_earned(target):
    twist = tw.TiedHeadTwist(target.lm, scored=target, depth=0)
    states = twist._states
    tokens = target.context.draw(6, torch.Generator().manual_seed(0))
    whole = torch.cat([target.prompt_tokens.expand(6, -1), tokens], dim=1)
    inputs = states.teacher_force(whole, len(target.prompt_tokens), None)
    mean, spread = twist.phi_level.tolist()
    so_far = (target.potential.log_phi(tokens[:, :3]) - mean) / spread / 2
    expected = states._strength * so_far.clamp(-2, 2)
    torch.testing.assert_close(inputs[:, 3, -2].double(), expected, rtol=0, atol=1e-5)


def test_a_scored_head_knows_what_phi_says_of_each_token(lm):
    """T = 1, and a phi that no direction of the embedding makes: the form holds psi* still."""
    worth = torch.randn(lm.vocab_size, generator=torch.Generator().manual_seed(3)).tolist()
    number = {lm.decode(torch.tensor([[v]]))[0].strip(): v for v in range(lm.vocab_size)}

    def lexicon(text):
        return 2 * worth[number.get(text.split()[-1], 0)]

    phi = tw.TextFunction(lexicon)
    target = tw.Target(lm, phi, prompt="once upon a", num_steps=1)
    values = target.log_phi(torch.arange(lm.vocab_size).unsqueeze(1))
    scores = ScoredStates(target).token_scores().double()
    assert float(scores.abs().max()) == 1
    centred = values - values.median()
    torch.testing.assert_close(scores, centred / centred.abs().max(), rtol=1e-6, atol=1e-6)
    twist = tw.TiedHeadTwist(lm, depth=0, scored=target)
    trainer = TwistTrainer(target, twist, method="rl", batch_size=256, learning_rate=0.05, seed=0)
    list(trainer.updates(40))
    log_psi, log_p = psi_at_the_prompt(target, twist)
    gap = (log_psi - values) - (log_psi - values).mean()
    weights = (log_p + values).softmax(-1)
    assert math.sqrt(float(weights @ gap**2)) < 0.1


@pytest.mark.parametrize(
    ("rules_out", "expected"), [(lambda text: "fox" not in text, 0), (lambda text: True, 0)]
)
def test_a_phi_that_rules_most_tokens_out_has_scores_all_the_same(lm, rules_out, expected):
    phi = tw.TextFunction(lambda text: -math.inf if rules_out(text) else 1.5)
    target = tw.Target(lm, phi, prompt="once upon a", num_steps=3)
    twist = tw.TiedHeadTwist(lm, scored=target)
    assert torch.equal(twist.head.scores, torch.full((lm.vocab_size,), expected).float())


def psi_at_the_prompt(target, twist):
    """Log psi and log p0 of each first token."""
    step = target.lm.prefill(target.prompt_tokens.unsqueeze(0))
    log_psi = twist.prefill(target.prompt_tokens.unsqueeze(0), step).log_psi_next[0]
    return log_psi.double(), step.log_probs[0].double()


def test_a_file_brings_its_potential_and_level(target, lm, tmp_path):
    tw.register_function(vowels)
    phi = tw.TextFunction(vowels)
    twist = make(tw.Target(lm, phi, prompt="once upon a", num_steps=5))
    loaded = tw.load_twist(tw.save_twist(twist, tmp_path / "one"), lm)
    tokens = torch.randint(lm.vocab_size, (4, 9))
    expected = twist.log_psi_next(tokens, len(target.prompt_tokens))
    assert torch.equal(loaded.log_psi_next(tokens, len(target.prompt_tokens)), expected)
    clone = copy.deepcopy(twist)
    assert torch.equal(clone.log_psi_next(tokens, len(target.prompt_tokens)), expected)
    assert clone.head.embedding is twist.head.embedding


def test_a_potential_that_json_cannot_hold_is_refused_before_anything_is_written(lm, tmp_path):
    target = tw.Target(lm, tw.TextFunction(lambda text: 0.0), prompt="once", num_steps=2)
    with pytest.raises(ValueError, match="register_function"):
        tw.save_twist(tw.TiedHeadTwist(lm, scored=target), tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_a_model_without_an_output_embedding_is_refused():
    toy = tw.load_problem("rainy-week").target()
    with pytest.raises(ValueError, match="hidden state"):
        tw.TiedHeadTwist(toy.lm)


def test_the_default_form_follows_the_vocabulary(lm, monkeypatch):
    assert lm.vocab_size < forms.TIED_FROM
    assert isinstance(tw.default_twist(lm), tw.MLPHeadTwist)
    monkeypatch.setattr(forms, "TIED_FROM", lm.vocab_size)
    assert isinstance(tw.default_twist(lm), tw.TiedHeadTwist)


def large_model(_):
    """A random transformer with 50,000 tokens."""
    config = transformers.GPT2Config(
        vocab_size=50_000, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0,
        eos_token_id=0, initializer_range=0.7,
    )  # fmt: skip
    torch.manual_seed(0)
    return HuggingFaceLM(transformers.GPT2LMHeadModel(config).eval())


@pytest.mark.parametrize(
    "model", [lambda lm: lm, pytest.param(large_model, marks=pytest.mark.slow)],
    ids=["small", "50,000 tokens"],
)  # fmt: skip
def test_it_reaches_the_optimal_twist_where_that_is_in_its_form(lm, model):
    """T = 1: log psi* = log phi, which a direction in the embedding makes."""
    lm = model(lm)
    direction = torch.randn(
        lm.output_embedding.shape[1], generator=torch.Generator().manual_seed(0)
    )
    values = (lm.output_embedding @ direction).double()
    values = 1.5 * (values - values.mean()) / values.std()
    phi = tw.TokenFunction(lambda tokens: values[tokens[:, -1]])
    target = tw.Target(lm, phi, prompt=[3, 1, 4], num_steps=1)
    twist = tw.TiedHeadTwist(lm, depth=0)
    trainer = TwistTrainer(target, twist, method="rl", batch_size=256, learning_rate=0.05, seed=0)
    for _ in trainer.updates(150):
        pass
    log_psi, log_p = psi_at_the_prompt(target, twist)
    gap = (log_psi - values) - (log_psi - values).mean()
    weights = (log_p + values).softmax(-1)
    assert math.sqrt(float(weights @ gap**2)) < 0.1


@pytest.mark.slow
def test_ten_updates_on_smollm2_bring_q_nearer_to_sigma():
    """Of 200 sequences of p0, weighted for sigma: KL(sigma || p0) - KL(sigma || q) > 0."""
    target = tw.load_problem("happy-review").target()
    twist = tw.default_twist(target)
    trainer = TwistTrainer(target, twist, method="rl", batch_size=64, seed=0)
    assert trainer.steps == 8
    assert [update.skipped for update in trainer.updates(10)] == [False] * 10
    held_out = draw_samples(
        target, num_particles=200, proposal=tw.Base(), seed=1, run=0, twist=None, keep_answers=False
    )
    with torch.no_grad():
        scored = score(target, twist, held_out)
    gain = (scored.log_q_psi - scored.log_p).sum(1)
    weights = held_out.log_phi.softmax(0)
    mean = float(weights @ gain)
    assert mean > 3 * float((weights**2 @ (gain - mean) ** 2).sqrt())
