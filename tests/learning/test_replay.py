"""What the training has drawn, weighed for sigma and used again."""

import math

import pytest
import torch
from learning.tables import unit_target
from learning.trainers import make_trainer, resumed
from smc.toys import chain, z_score

import tsmc_widgets as tw
from tsmc_widgets.learning import positives as replay
from tsmc_widgets.learning.positives import ReplayedPositives
from tsmc_widgets.learning.samples import draw_samples
from tsmc_widgets.twists import TableHeadTwist


def skewed_twist(target):
    """Somewhere between psi = 1 and a bad guess."""
    twist = TableHeadTwist(target.lm, num_steps=target.num_steps)
    generator = torch.Generator().manual_seed(8)
    for table in twist.parameters():
        table.data += 0.8 * torch.randn(table.shape, generator=generator, dtype=table.dtype)
    return twist


def batch_of(target, twist, run, size=200):
    proposal = tw.TwistInduced(twist)
    return draw_samples(target, num_particles=size, proposal=proposal, seed=0, run=run)


def test_samples_are_those_of_sigma_whatever_drew_them():
    target = unit_target()
    oracle, twist = tw.exact(target), skewed_twist(target)
    shares = []
    for seed in range(100):
        positives = ReplayedPositives(target, seed, start=300, on_policy_ess=9.0)
        for update in range(3):
            drawn = positives.draw(update, 60, batch_of(target, twist, 3 * seed + update))
        hits = (drawn.tokens.unsqueeze(1) == oracle.tokens).all(-1).double()
        shares.append(torch.softmax(drawn.log_weights, 0) @ hits)
    common = oracle.log_sigma.exp() > 0.01
    wrong = (torch.stack(shares) - oracle.log_sigma.exp())[:, common]
    assert wrong.shape[1] > 10
    scores = torch.tensor([z_score(column, 0.0) for column in wrong.T])
    assert float(scores.abs().max()) < 4.5
    assert torch.equal(drawn.log_phi, target.log_phi(drawn.tokens))
    assert len(drawn.tokens) > 15


def test_a_batch_counts_by_its_ess():
    target = unit_target()
    positives = ReplayedPositives(target, start=1, on_policy_ess=9.0)
    positives.draw(0, 5, batch_of(target, skewed_twist(target), 0))
    good, bad = (batch_of(target, skewed_twist(target), run) for run in (1, 2))
    good.log_weights.zero_()
    bad.log_weights[1:] = -50.0
    bad.tokens[:] = torch.tensor([2, 2, 2])
    positives.draw(1, 5, good)
    drawn = positives.draw(2, 10_000, bad)
    share = torch.softmax(drawn.log_weights, 0)[(drawn.tokens == 2).all(1)].sum()
    assert float(share) < 0.02


def test_the_start_counts_for_a_part_whatever_the_batches_are_worth():
    target = unit_target()
    positives = ReplayedPositives(target, start=30, min_base_share=0.4, on_policy_ess=9.0)
    batches = [batch_of(target, skewed_twist(target), run) for run in range(4)]
    for batch in batches:
        # A kind of text that the batches do not have.
        batch.tokens[:] = torch.tensor([2, 2, 2])
    for update, batch in enumerate(batches):
        drawn = positives.draw(update, 10_000, batch)
    start = positives._parts[-1]
    other = torch.softmax(start.log_weights, 0)[(start.tokens != 2).any(1)].sum()
    share = torch.softmax(drawn.log_weights, 0)[(drawn.tokens != 2).any(1)].sum()
    assert float(share) == pytest.approx(0.4 * float(other), abs=1e-3)


def test_one_text_with_all_the_weight_is_still_learned_from():
    target = unit_target()
    batch = batch_of(target, skewed_twist(target), 0)
    batch.log_weights[1:] = -math.inf
    positives = ReplayedPositives(target, start=1, min_base_share=0.0)
    positives._parts[-1] = batch
    drawn = positives.draw(0, 50, batch)
    # Once from the start and once from the batch.
    assert torch.equal(drawn.tokens, batch.tokens[:1].repeat(2, 1))
    assert float(drawn.log_weights.abs().max()) == 0.0


def test_the_start_is_as_long_as_its_weights_ask_for():
    target = unit_target()
    batch = batch_of(target, skewed_twist(target), 0)
    sizes = {}
    for ess in (1.0, 900.0, 1e9):
        positives = ReplayedPositives(target, start=2500, target_ess=ess)
        positives.draw(0, 4, batch)
        sizes[ess] = len(positives._parts[-1])
    assert sizes[1.0] == 1024 < sizes[900.0] <= sizes[1e9] == 2500


def test_old_batches_are_forgotten_and_the_start_is_not():
    target = unit_target()
    positives = ReplayedPositives(target, keep=3, start=50)
    for update in range(8):
        positives.draw(update, 4, batch_of(target, skewed_twist(target), update, size=10))
    assert sorted(positives._parts) == [-1, 5, 6, 7]
    assert positives.describe() == "4 weighted batches"


def test_going_back_forgets_what_came_after():
    target = unit_target()
    batches = [batch_of(target, skewed_twist(target), run, size=10) for run in range(5)]
    one, two = ReplayedPositives(target, start=50), ReplayedPositives(target, start=50)
    for update, batch in enumerate(batches):
        one.draw(update, 4, batch)
    for positives in (one, two):
        for update in range(2):
            drawn = positives.draw(update, 4, batches[update])
    assert torch.equal(drawn.tokens, one.draw(1, 4, batches[1]).tokens)
    assert sorted(one._parts) == sorted(two._parts)


def test_without_a_hit_the_batch_is_passed_on():
    target = tw.Target(chain(), tw.MatchesRegex("c{16}"), prompt="a", num_steps=16)
    batch = draw_samples(target, num_particles=4, proposal=tw.Base(), seed=0, run=0)
    drawn = ReplayedPositives(target, start=4).draw(0, 4, batch)
    assert drawn is batch
    assert float(drawn.log_weights.max()) == -math.inf


def test_training_goes_on_with_it_to_the_byte(tmp_path):
    def trainer():
        return make_trainer(positives=ReplayedPositives(unit_target(), 3, keep=4, start=100))

    resumed(trainer, tmp_path / "training", 6, 3, into=make_trainer)


@pytest.mark.parametrize("numbers", [{"keep": 0}, {"start": 0}, {"replay_every": 0}])
def test_bad_numbers(numbers):
    with pytest.raises(ValueError, match=f"{next(iter(numbers))} must be an integer of at least 1"):
        ReplayedPositives(unit_target(), **numbers)


@pytest.mark.parametrize(("name", "value"), [("min_base_share", 1.0), ("on_policy_ess", 0.0)])
def test_bad_shares(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*; got {value}"):
        ReplayedPositives(unit_target(), **{name: value})


def test_an_interrupt_keeps_the_blocks_of_the_start_that_are_done(monkeypatch):
    target = unit_target()
    monkeypatch.setattr(replay, "_BLOCK", 16)
    whole = ReplayedPositives(target, start=64, target_ess=1e9)
    whole.afresh()
    broken, calls = ReplayedPositives(target, start=64, target_ess=1e9), []

    def interrupted(*arguments, **options):
        calls.append(options["run"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_samples(*arguments, **options)

    monkeypatch.setattr(replay, "draw_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.afresh()
    broken.afresh()
    assert len(calls) == 5
    assert torch.equal(broken._parts[-1].tokens, whole._parts[-1].tokens)


def test_any_seed_will_do():
    target = unit_target()
    positives = ReplayedPositives(target, seed=2**62, start=50, on_policy_ess=2.0)
    positives.draw(0, 4, batch_of(target, skewed_twist(target), 0, size=10))


class TestAFairBatch:
    def fair(self, target, share, size=40):
        """A batch whose weights have this effective share."""
        batch = batch_of(target, skewed_twist(target), 0, size=size)
        batch.log_weights[:] = -math.inf
        batch.log_weights[: round(share * size)] = 0.0
        return batch

    def test_it_stands_for_itself(self):
        target = unit_target()
        positives = ReplayedPositives(target, start=50, on_policy_ess=0.5)
        good, poor = self.fair(target, 0.55), self.fair(target, 0.45)
        assert positives.draw(0, 40, good) is good
        assert positives.draw(1, 40, poor) is not poor
        assert sorted(positives._parts) == [-1, 0, 1]

    def test_few_texts_do_not_whatever_their_share(self):
        target = unit_target()
        batch = self.fair(target, 1.0, size=8)
        assert ReplayedPositives(target, start=50).draw(0, 8, batch) is not batch

    def test_now_and_then_it_is_reminded(self):
        target = unit_target()
        positives = ReplayedPositives(target, start=50, replay_every=3)
        batch = self.fair(target, 1.0)
        alone = [positives.draw(update, 40, batch) is batch for update in range(7)]
        assert alone == [True, True, False, True, True, False, True]

    def test_each_process_is_reminded_as_often_and_remembers_as_much(self):
        target = unit_target()
        batch = self.fair(target, 1.0)
        sources = [
            ReplayedPositives(target, start=50, keep=2, replay_every=3, stride=2) for _ in "ab"
        ]
        for rank, positives in enumerate(sources):
            places = [2 * update + rank for update in range(7)]
            alone = [positives.draw(place, 40, batch) is batch for place in places]
            assert alone == [True, True, False, True, True, False, True]
            assert sorted(positives._parts) == [-1, *places[-2:]]

    def test_none_does_above_one(self):
        target = unit_target()
        batch = self.fair(target, 1.0)
        assert (
            ReplayedPositives(target, start=50, on_policy_ess=1.1).draw(0, 40, batch) is not batch
        )


def test_afresh_the_start_is_shared_and_no_batch():
    target = unit_target()
    positives = ReplayedPositives(target, 5, keep=7, start=50)
    positives.draw(0, 4, batch_of(target, skewed_twist(target), 0, size=10))
    again = positives.afresh()
    assert sorted(again._parts) == [-1]
    assert again._parts[-1] is positives._parts[-1]
    assert (again.seed, again.keep) == (5, 7)
    again.draw(3, 4, batch_of(target, skewed_twist(target), 1, size=10))
    assert sorted(positives._parts) == [-1, 0]
