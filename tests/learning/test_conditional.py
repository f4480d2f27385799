"""Learning under many observations: exact gradients and optima for each o, nothing ever mixed."""

import math
from dataclasses import replace

import pytest
import torch
from learning.tables import descend, flat_gradient
from learning.worlds import EveryPair
from smc.observed import ConditionalTables

from tsmc_widgets.learning import conditional
from tsmc_widgets.learning.conditional import (
    BLOCK,
    JointPositives,
    JointStream,
    ManyObservations,
    RetainedPositives,
    rolled_out,
    with_phi,
)
from tsmc_widgets.learning.objectives import (
    RECIPES,
    cd_loss,
    ctl_loss,
    dpg_loss,
    fudge_loss,
    nvi_loss,
    rl_loss,
    sixo_loss,
)
from tsmc_widgets.learning.positives import WeightedPositives
from tsmc_widgets.learning.samples import Scored, score
from tsmc_widgets.numerics import log1mexp

DRAWS = 30


@pytest.fixture(scope="module")
def world():
    return EveryPair()


def one_batch(name):
    # Enumerated texts are not drawn from q, as a batch of dpg's is.
    return dpg_loss if name == "dpg" else lambda scored: RECIPES[name].loss(scored, scored)


def free(name, tables, generator):
    """Move psi* by what a loss leaves free: of t and o, or of the prefix and o."""
    for table in tables:
        if name in ("ctl", "nvi"):
            table += torch.randn(3, 1, generator=generator, dtype=torch.float64)
        if name == "dpg":
            rows = table.reshape(3, -1, 3)
            rows += torch.randn(*rows.shape[:2], 1, generator=generator, dtype=torch.float64)


class TestOptima:
    """The losses are convex in log psi (in its logit, for the sigmoid): slope 0 is the optimum."""

    @pytest.mark.parametrize("name", ["ctl", "nvi", "rl", "sixo", "fudge", "dpg", "cd"])
    def test_the_optimum_of_each_observation(self, world, name):
        loss = one_batch(name)
        twist = ConditionalTables.optimal(world.target)
        with torch.no_grad():
            free(name, twist.tables, torch.Generator().manual_seed(0))
            for table in twist.tables:
                if name == "sixo":
                    table -= world.log_z.unsqueeze(1)
                if name == "fudge":
                    table -= log1mexp(table)
        if name == "fudge":
            twist.link = "sigmoid"
            twist.start_at(-math.log(2.0))
        slope = flat_gradient(twist, loss(world.scored(twist)))
        assert float(slope.abs().max()) < 1e-12
        with torch.no_grad():
            for table in twist.tables:
                table[[0, 1, 2]] = table[[0, 2, 1]]
        slope = flat_gradient(twist, loss(world.scored(twist)))
        assert float(slope.abs().max()) > 1e-3

    @pytest.mark.slow
    def test_it_is_found(self, world):
        twist = ConditionalTables()
        descend(twist, lambda: one_batch("ctl")(world.scored(twist)), steps=400)
        gap = (world.scored(twist).log_psi - world.log_psi_star).detach().reshape(3, -1, 3)
        assert float((gap - gap.mean(1, keepdim=True)).abs().max()) < 0.01
        assert world.divergence(twist) < 1e-5


SOURCES = {
    "ctl": (ctl_loss, JointPositives(), 64),
    "ctl, conditional SMC": (ctl_loss, RetainedPositives(3), 64),
    "ctl, weighted batch": (ctl_loss, WeightedPositives(), 128),
    "dpg": (lambda at_sigma, _: dpg_loss(at_sigma), JointPositives(), 2),
    "dpg, conditional SMC": (lambda at_sigma, _: dpg_loss(at_sigma), RetainedPositives(3), 2),
    "sixo": (sixo_loss, JointPositives(), 3),
    "fudge": (lambda _, batch: fudge_loss(batch), None, 12),
    "cd": (lambda _, batch: cd_loss(batch), None, 12),
}


def make_many(world, twist, count, particles, positives=None, *, from_base=False, seed=0):
    return ManyObservations(
        target=world.target,
        twist=twist,
        num_texts=count * particles,
        observations=count,
        positives=positives,
        from_base=from_base,
        seed=seed,
    )


def gradient_z(world, name):
    """Largest z-score of the sampled gradient of an update against the enumerated one."""
    loss, positives, particles = SOURCES[name]
    twist = ConditionalTables(seed=5, link="sigmoid" if name == "fudge" else "log")
    expected = flat_gradient(twist, world.expected(twist, lambda scored: loss(scored, scored)))
    from_base = name in ("sixo", "fudge", "cd")
    many = make_many(world, twist, 60, particles, positives, from_base=from_base, seed=1)
    found = []
    for address in range(DRAWS):
        batch, at_sigma = many.draw(address)
        scored = score(world.target, twist, batch)
        if at_sigma is not None and at_sigma is not batch:
            at_sigma = score(world.target, twist, at_sigma)
        else:
            at_sigma = scored
        found.append(flat_gradient(twist, loss(at_sigma, scored)))
    # Directions at random: a rare text's own parameter sees it too seldom for a z-score.
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(len(expected), 20, generator=generator, dtype=torch.float64)
    found, expected = torch.stack(found) @ directions, expected @ directions
    error = found.std(0) / math.sqrt(DRAWS)
    return float(((found.mean(0) - expected) / error).abs().max())


class TestGradients:
    @pytest.mark.parametrize("name", SOURCES)
    def test_sampled_is_enumerated(self, world, name):
        assert gradient_z(world, name) < 4.5

    @pytest.mark.parametrize("name", ["ctl, weighted batch", "ctl, conditional SMC"])
    def test_weights_pooled_over_observations_are_seen(self, world, name, monkeypatch):
        true = Scored._normalise

        def pooled(self, log_weights):
            alike = replace(self.samples, group=torch.zeros_like(self.samples.group))
            return true(replace(self, samples=alike), log_weights)

        monkeypatch.setattr(Scored, "_normalise", pooled)
        assert gradient_z(world, name) > 4.5

    @pytest.mark.parametrize("name", ["ctl", "fudge"])
    def test_texts_under_the_wrong_observation_are_seen(self, world, name, monkeypatch):
        true = ManyObservations.draw

        def mixed(self, address):
            batch, at_sigma = true(self, address)
            if at_sigma is None:
                shifted = batch.observed.roll(self.particles, dims=0)
                return replace(batch, observed=shifted), None
            return batch, replace(at_sigma, observed=at_sigma.observed.roll(1, dims=0))

        monkeypatch.setattr(ManyObservations, "draw", mixed)
        assert gradient_z(world, name) > 4.5

    def test_a_text_under_its_own_observation_is_no_draw_of_p0(self, world, monkeypatch):
        """Rolled out with itself among the others: biased, and seen."""
        true = torch.arange
        monkeypatch.setattr(
            conditional.torch,
            "arange",
            lambda *a, **o: true(*((a[0] - 1, a[1] - 1) if len(a) == 2 else a), **o),
        )
        assert gradient_z(world, "sixo") > 4.5


class TestGroups:
    @pytest.mark.parametrize("name", ["ctl", "nvi", "dpg", "sixo", "rl"])
    def test_order_and_names_of_groups_do_not_matter(self, world, name):
        twist, whole = ConditionalTables(seed=5), world.samples()
        loss = one_batch(name)
        expected = loss(score(world.target, twist, whole))
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        shuffled = replace(
            whole,
            **{
                field: getattr(whole, field)[order]
                for field in ("tokens", "log_q", "log_weights", "log_phi", "observed")
            },
            group=(7 - 3 * whole.group)[order],
        )
        found = loss(score(world.target, twist, shuffled))
        assert abs(float((found - expected).detach())) < 1e-12

    @pytest.mark.parametrize("name", ["ctl", "nvi", "dpg", "sixo"])
    def test_each_group_counts_alike_whatever_its_weights(self, world, name):
        twist, loss = ConditionalTables(seed=5), one_batch(name)
        whole = world.samples()
        shifted = replace(whole, log_weights=whole.log_weights + 40.0 * whole.group)
        each = [loss(world.scored(twist, (o,))) for o in range(3)]
        found = loss(score(world.target, twist, shifted))
        assert abs(float((found - sum(each) / 3).detach())) < 1e-12

    def test_a_group_of_one_is_refused_where_weights_are_normalised(self, world):
        twist = ConditionalTables(seed=5)
        many = make_many(world, twist, 5, 1, JointPositives())
        batch, at_sigma = (score(world.target, twist, part) for part in many.draw(0))
        for loss in (
            lambda: ctl_loss(at_sigma, batch),
            lambda: nvi_loss(batch),
            lambda: dpg_loss(batch),
            lambda: sixo_loss(at_sigma, batch),
        ):
            with pytest.raises(ValueError, match=r"group 0 has one text.*at least 2"):
                loss()
        assert math.isfinite(float(dpg_loss(at_sigma).detach()))
        assert math.isfinite(float(rl_loss(batch).detach()))


class TestDraws:
    def test_the_stream_is_the_same_in_any_portions(self, world):
        stream, other = JointStream(world.target, 3), JointStream(world.target, 3)
        whole = stream.take(BLOCK - 30, 60)
        parts = [other.take(BLOCK - 30 + at, 20) for at in (40, 0, 20)]
        parts = [parts[1], parts[2], parts[0]]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert torch.equal(torch.cat([part.observed for part in parts]), whole.observed)
        assert not torch.equal(JointStream(world.target, 4).take(0, 60).tokens, whole.tokens)

    def test_each_update_has_observations_of_its_own(self, world):
        many = make_many(world, ConditionalTables(), 8, 3, JointPositives())
        first, at_sigma = many.draw(0)
        assert torch.equal(first.observed[::3], at_sigma.observed)
        assert first.group.tolist() == [o for o in range(8) for _ in range(3)]
        assert torch.equal(many.draw(0)[0].tokens, first.tokens)
        assert not torch.equal(many.draw(1)[0].tokens, first.tokens)

    def test_rolled_out_texts_are_those_of_others(self, world):
        joint = world.target.exact_samples(6, seed=1, progress=False)
        batch = rolled_out(world.target, joint, 5)
        assert torch.equal(batch.observed, joint.observed.repeat_interleave(5, dim=0))
        for o in range(6):
            others = [joint.tokens[(o + k) % 6].tolist() for k in range(1, 6)]
            assert batch.tokens[batch.group == o].tolist() == others
        weighed = with_phi(world.target, batch, 6)
        expected = world.target.log_phi_given(batch.tokens, batch.observed)
        torch.testing.assert_close(weighed.log_phi, expected, rtol=0, atol=1e-12)
        some = with_phi(world.target, batch, 2).log_weights
        torch.testing.assert_close(some[:10], expected[:10], rtol=0, atol=1e-12)
        assert bool(some[10:].isnan().all())
        log_p = world.target.log_p(batch.tokens)
        torch.testing.assert_close(batch.log_q.sum(1), log_p, rtol=0, atol=1e-12)

    def test_conditional_smc_gives_each_observation_its_particles(self, world):
        twist = ConditionalTables(seed=5)
        joint = world.target.exact_samples(6, seed=1, progress=False)
        drawn = RetainedPositives(4).draw_given(world.target, twist, joint, seed=0, run=0)
        assert torch.equal(drawn.observed, joint.observed.repeat_interleave(4, dim=0))
        assert torch.equal(drawn.tokens[::4], joint.tokens)
        twist.method = "dpg"
        alone = RetainedPositives(4).draw_given(world.target, twist, joint, seed=0, run=0)
        assert torch.equal(alone.tokens[::4], joint.tokens)
        assert not torch.equal(alone.log_weights, drawn.log_weights)
