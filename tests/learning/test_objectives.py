"""Each loss has the optimum that its docstring states, and gradients that sampling estimates."""

import math
from dataclasses import replace

import pytest
import torch
from learning.tables import (
    Everything,
    ParameterTable,
    descend,
    flat_gradient,
    full_target,
    minimise,
    unit_target,
)
from smc.toys import eos_target

import tsmc_widgets as tw
from tsmc_widgets.errors import NoSignalError
from tsmc_widgets.learning import (
    Samples,
    advantages_and_returns,
    cd_loss,
    ctl_loss,
    dpg_loss,
    fudge_loss,
    nvi_loss,
    ppo_loss,
    rl_loss,
    score,
    sixo_loss,
)
from tsmc_widgets.learning.objectives import floored


@pytest.fixture(scope="module")
def world():
    return full_target()


@pytest.fixture(scope="module")
def unit_world():
    """The same with phi <= 1, for losses that read phi as a probability."""
    return Everything(unit_target())


def learned(world, loss, *, search=descend, **options):
    twist = ParameterTable(3, world.steps, **options)
    search(twist, lambda: loss(world.scored(twist)))
    return world.scored(twist)


def gaps(scored, world):
    return (scored.log_psi - world.log_psi_star).detach()


def spread_within_steps(gap):
    """Largest deviation from a constant for each t."""
    return float((gap - gap.mean(0)).abs().max())


class TestOptima:
    @pytest.mark.parametrize("loss", [lambda s: ctl_loss(s, s), nvi_loss], ids=["ctl", "nvi"])
    def test_up_to_a_constant_for_each_step(self, world, loss):
        assert spread_within_steps(gaps(learned(world, loss), world)) < 1e-3

    @pytest.mark.parametrize("decay", [0.0, 0.9])
    def test_path_consistency_is_exact(self, world, decay):
        gap = gaps(learned(world, lambda s: rl_loss(s, decay=decay)), world)
        assert float(gap.abs().max()) < 1e-3

    def test_sixo_is_off_by_log_z(self, world):
        gap = gaps(learned(world, lambda s: sixo_loss(s, s), search=minimise), world)
        assert float((gap + world.log_z).abs().max()) < 1e-3

    def test_fudge_is_exact(self, unit_world):
        gap = gaps(learned(unit_world, fudge_loss, link="sigmoid", search=minimise), unit_world)
        assert float(gap.abs().max()) < 1e-3

    def test_value_regression_is_exact(self, unit_world):
        """The loss is a square for each prefix alone: its one optimum is where the slope is 0."""
        twist = unit_world.optimal_table()
        scored = unit_world.scored(twist)
        assert float(gaps(scored, unit_world).abs().max()) == 0
        assert float(flat_gradient(twist, cd_loss(scored)).abs().max()) < 1e-15
        twist.tables[1].data += 0.1
        assert float(flat_gradient(twist, cd_loss(unit_world.scored(twist))).abs().max()) > 1e-5

    def test_dpg_learns_the_proposal_alone(self, world):
        scored = learned(world, dpg_loss, seed=5, search=minimise)
        gap = scored.log_q_psi.detach().sum(1) - world.oracle.log_sigma
        assert float(gap.abs().max()) < 1e-3
        assert spread_within_steps(gaps(scored, world)) > 0.1

    def test_ppo_learns_the_proposal(self, world):
        """With exact expectations and a perfect critic, the clipped objective leads to sigma."""
        twist = ParameterTable(3, world.steps)
        optimiser = torch.optim.Adam(twist.parameters(), lr=0.05)
        for step in range(1500):
            if step == 1200:
                optimiser.param_groups[0]["lr"] = 0.005
            scored = world.scored(twist)
            log_q = scored.log_q_psi.detach()
            advantages, _ = advantages_and_returns(
                scored, log_q, torch.zeros_like(log_q), decay=1.0
            )
            weights = log_q.sum(1).exp().unsqueeze(1)
            baseline = (weights * advantages).sum(0)
            count = len(weights)
            loss = ppo_loss(scored, log_q, count * weights * (advantages - baseline))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        gap = world.scored(twist).log_q_psi.detach().sum(1) - world.oracle.log_sigma
        assert float(gap.abs().max()) < 0.02


@pytest.fixture(scope="module")
def drawn():
    target = eos_target(3)
    trace = tw.run_smc(target, num_particles=4000, rule="never", seed=1)
    return target, Samples.of_trace(trace)


class TestEnds:
    def test_log_psi_stays_after_the_end(self, drawn):
        target, samples = drawn
        twist = ParameterTable(3, 3, seed=3)
        scored = score(target, twist, samples)
        over = ~scored.live
        assert bool(over.any())
        assert bool((scored.log_p[over] == 0).all())
        assert bool((scored.log_q_psi[over] == 0).all())
        for t in (1, 2):
            late = over[:, t]
            assert torch.equal(scored.log_psi[late, t], scored.log_psi[late, t - 1])

    def test_path_consistency_ends_at_phi(self, drawn):
        target, samples = drawn
        twist = ParameterTable(3, 3)
        descend(twist, lambda: rl_loss(score(target, twist, samples)), steps=1500)
        scored = score(target, twist, samples)
        ended = scored.live.sum(1) < 3
        last = scored.live.sum(1) - 1
        found = scored.log_psi.detach()[torch.arange(len(samples)), last]
        assert float((found - samples.log_phi)[ended].abs().max()) < 1e-3


LOSSES = {
    "ctl": lambda s: ctl_loss(s, s),
    "ctl, two batches": lambda s: ctl_loss(s, replace(s)),
    "rl": rl_loss,
    "rl, several steps": lambda s: rl_loss(s, decay=0.7),
    "sixo": lambda s: sixo_loss(s, s),
    "dpg": dpg_loss,
    "nvi": nvi_loss,
    "cd": cd_loss,
}


def gradient_z(world, twist, log_q, loss, expected, *, seed):
    """Largest z-score of a loss's gradient, over 60 batches of q, against what is expected."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(60):
        samples = world.drawn(log_q, 20_000, generator)
        found.append(flat_gradient(twist, loss(score(world.target, twist, samples))))
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(60)
    return float(((found.mean(0) - expected) / error.clamp(min=1e-12)).abs().max())


class TestGradients:
    """Sampled gradients against enumerated ones, 60 batches, one z-score for each parameter."""

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("proposal", ["base", "twist"])
    def test_sampled_is_enumerated(self, name, proposal, world):
        loss = LOSSES[name]
        twist = ParameterTable(3, 3, seed=5)
        everything = world.scored(twist)
        log_q = everything.log_p if proposal == "base" else everything.log_q_psi
        log_q = log_q.detach()
        if name.startswith("rl"):
            weights = log_q.sum(1).exp() * len(log_q)
            decay = 0.0 if name == "rl" else 0.7
            expected = flat_gradient(twist, self.weighted_rl(everything, weights, decay))
        else:
            expected = flat_gradient(twist, loss(everything))
        assert gradient_z(world, twist, log_q, loss, expected, seed=1) < 4.5
        assert float(expected.abs().max()) > 1e-3

    def weighted_rl(self, scored, weights, decay):
        log_phi = scored.samples.log_phi.unsqueeze(1)
        goal = torch.cat([scored.log_norm[:, 1:], log_phi], dim=1).detach()
        error = goal - scored.log_psi.detach()
        for t in range(goal.shape[1]):
            for later in range(t + 1, goal.shape[1]):
                goal[:, t] += decay ** (later - t) * error[:, later]
        return (weights.unsqueeze(1) * (scored.log_psi - goal) ** 2).mean()


@pytest.mark.parametrize("batches", [1, 2])
def test_ctl_follows_the_contrast_of_log_psi(world, batches):
    """The gradient with the last token summed out is that of the two expectations themselves."""
    twist = ParameterTable(3, 3, seed=5)
    scored = [world.scored(twist) for _ in range(batches)]
    found = flat_gradient(twist, ctl_loss(scored[0], scored[-1]))
    scored = world.scored(twist)
    at_sigma = (scored.weights_for_sigma().unsqueeze(1) * scored.log_psi).sum(0)
    at_twist = (scored.weights_for_twist() * scored.log_psi).sum(0)
    expected = flat_gradient(twist, -(at_sigma - at_twist).mean())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batches", [1, 2])
def test_ctl_is_the_divergence_of_sigma_from_pi(world, batches):
    """Up to a constant, which the optimal twist shows."""
    values, log_psis = [], []
    for twist in (ParameterTable(3, 3, seed=5), world.optimal_table()):
        scored = [world.scored(twist) for _ in range(batches)]
        values.append(float(ctl_loss(scored[0], scored[-1]).detach()))
        log_psi = scored[0].log_psi.detach()
        log_psis.append(log_psi - torch.logsumexp(world.oracle.log_p.unsqueeze(1) + log_psi, 0))
    log_psi, log_psi_star = log_psis
    divergence = world.oracle.log_sigma.exp() @ (log_psi_star - log_psi).mean(1)
    assert float(divergence) > 0.1
    assert values[0] - values[1] == pytest.approx(float(divergence), abs=1e-12)


class TestOneBatch:
    """Texts that are positives and negatives at once."""

    LOSSES = {  # noqa: RUF012
        "ctl": (lambda s: ctl_loss(s, s), lambda s: ctl_loss(s, replace(s))),
        "dpg": (lambda s: dpg_loss(s, from_q=True), dpg_loss),
    }

    @pytest.mark.parametrize("name", LOSSES)
    def test_no_noise_is_left_at_the_optimum(self, world, name):
        twist = world.optimal_table()
        log_q = world.scored(twist).log_q_psi.detach()
        samples = world.drawn(log_q, 50, torch.Generator().manual_seed(3))
        together, apart = (
            flat_gradient(twist, loss(score(world.target, twist, samples)))
            for loss in self.LOSSES[name]
        )
        assert float(together.abs().max()) < 1e-9
        assert float(apart.abs().max()) > 1e-3

    def test_the_baseline_of_dpg_is_no_part_of_its_value(self, world):
        scored = world.scored(ParameterTable(3, 3, seed=5))
        cross_entropy = -float(world.oracle.log_sigma.exp() @ scored.log_q_psi.detach().sum(1)) / 3
        for loss in self.LOSSES["dpg"]:
            assert float(loss(scored).detach()) == pytest.approx(cross_entropy, abs=1e-12)

    def test_the_baseline_of_dpg_is_no_bias(self, world):
        twist = ParameterTable(3, 3, seed=5)
        expected = flat_gradient(twist, dpg_loss(world.scored(twist)))
        log_q = world.scored(twist).log_q_psi.detach()

        def loss(scored):
            return dpg_loss(scored, from_q=True)

        assert gradient_z(world, twist, log_q, loss, expected, seed=4) < 4.5


class TestInvariances:
    def test_ctl_does_not_see_a_constant_for_each_step(self, world):
        twist = ParameterTable(3, 3, seed=5)
        before = ctl_loss(world.scored(twist), world.scored(twist))
        gradient = flat_gradient(twist, before)
        with torch.no_grad():
            for t, table in enumerate(twist.tables):
                table += 3.0 * t - 1.0
        after = ctl_loss(world.scored(twist), world.scored(twist))
        assert float((after - before).detach()) == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(flat_gradient(twist, after), gradient, rtol=0, atol=1e-12)

    def test_dpg_does_not_see_a_function_of_the_prefix(self, world):
        twist = ParameterTable(3, 3, seed=5)
        before = dpg_loss(world.scored(twist))
        with torch.no_grad():
            for table in twist.tables:
                rows = table.reshape(-1, 3)
                rows += torch.randn(len(rows), 1, dtype=torch.float64)
        after = dpg_loss(world.scored(twist))
        assert float((after - before).detach()) == pytest.approx(0, abs=1e-12)

    def test_groups_are_never_pooled(self, world):
        """Two groups with weights of different size: the loss is the mean of both losses."""
        twist = ParameterTable(3, 3, seed=5)
        whole = world.samples()
        half = torch.arange(len(whole)) % 2 == 0

        def part(mask, shift, group):
            count = int(mask.sum())
            return Samples(
                tokens=whole.tokens[mask],
                log_q=whole.log_q[mask],
                log_weights=whole.log_weights[mask] + shift,
                log_phi=whole.log_phi[mask],
                group=torch.full((count,), group),
            )

        first, second = part(half, 0.0, 4), part(~half, 50.0, 9)
        both = Samples(
            *(
                torch.cat([getattr(first, name), getattr(second, name)])
                for name in ("tokens", "log_q", "log_weights", "log_phi", "group")
            )
        )

        def loss(samples):
            scored = score(world.target, twist, samples)
            return ctl_loss(scored, scored)

        expected = (loss(first) + loss(second)) / 2
        assert float((loss(both) - expected).detach()) == pytest.approx(0, abs=1e-12)


class TestRefused:
    def test_no_hit(self, world):
        twist = ParameterTable(3, 3)
        samples = world.samples()
        dead = replace(samples, log_weights=torch.full_like(samples.log_weights, -torch.inf))
        assert not dead.has_hits
        assert samples.has_hits
        scored = score(world.target, twist, dead)
        for loss in (lambda s: ctl_loss(s, s), nvi_loss, dpg_loss, lambda s: sixo_loss(s, s)):
            with pytest.raises(NoSignalError, match="weight zero"):
                loss(scored)

    def test_values_without_a_hit_are_not_regressed_on(self, world):
        samples = replace(world.samples(), log_phi=torch.full((27,), -math.inf).double())
        with pytest.raises(NoSignalError, match="nothing to regress on"):
            rl_loss(score(world.target, ParameterTable(3, 3), samples))

    def test_fudge_reads_probabilities(self, world):
        with pytest.raises(ValueError, match="needs log phi <= 0; got 2"):
            fudge_loss(world.scored(ParameterTable(3, 3)))

    def test_fudge_needs_the_sigmoid(self, unit_world):
        with pytest.raises(ValueError, match="link='sigmoid'"):
            fudge_loss(unit_world.scored(ParameterTable(3, 3, seed=2)))


def test_the_floor_is_below_one_or_below_the_best_text():
    found = floored(torch.tensor([-math.inf, -31.0, -29.0, 0.0, 2.0]).double())
    assert found.tolist() == [-30.0, -30.0, -29.0, 0.0, 2.0]
    found = floored(torch.tensor([-math.inf, -71.0, -69.0, -40.0]).double())
    assert found.tolist() == [-70.0, -70.0, -69.0, -40.0]
