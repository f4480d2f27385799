"""Each loss has the optimum that its docstring states, and gradients that sampling estimates."""

import math
from dataclasses import replace

import pytest
import torch
from learning.tables import (
    Everything,
    ParameterTable,
    flat_gradient,
    full_target,
    prefix_index,
    unit_target,
)
from smc.toys import eos_target

import tsmc_widgets as tw
from tsmc_widgets.errors import NoSignalError
from tsmc_widgets.learning import (
    Samples,
    cd_loss,
    ctl_loss,
    dpg_loss,
    fudge_loss,
    nvi_loss,
    rl_loss,
    score,
    sixo_loss,
)
from tsmc_widgets.learning.objectives import floored
from tsmc_widgets.numerics import log1mexp


@pytest.fixture(scope="module")
def world():
    return full_target()


@pytest.fixture(scope="module")
def unit_world():
    """The same with phi <= 1, for losses that read phi as a probability."""
    return Everything(unit_target())


OPTIMA = {
    "ctl": lambda s: ctl_loss(s, s),
    "nvi": nvi_loss,
    "rl": rl_loss,
    "rl, several steps": lambda s: rl_loss(s, decay=0.9),
    "sixo": lambda s: sixo_loss(s, s),
    "fudge": fudge_loss,
    "dpg": dpg_loss,
}


class TestOptima:
    """The losses are convex in log psi (in its logit, for the sigmoid): slope 0 is the optimum.

    Path consistency is a regression for each step, from the last one back.
    """

    @pytest.mark.parametrize("name", OPTIMA)
    def test_it_is_psi_star_up_to_what_the_loss_leaves_free(self, name, world, unit_world):
        world = unit_world if name == "fudge" else world
        twist, generator = world.optimal_table(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for table in twist.tables:
                if name in ("ctl", "nvi"):
                    table += torch.randn(1, generator=generator, dtype=torch.float64)
                if name == "sixo":
                    table -= world.log_z
                if name == "dpg":
                    rows = table.reshape(-1, 3)
                    rows += torch.randn(len(rows), 1, generator=generator, dtype=torch.float64)
                if name == "fudge":
                    table -= log1mexp(table)
        twist.link = "sigmoid" if name == "fudge" else "log"

        def slope():
            return float(flat_gradient(twist, OPTIMA[name](world.scored(twist))).abs().max())

        assert slope() < 1e-12
        for table in twist.tables:
            table.data[1] += 0.1
            assert slope() > 1e-5
            table.data[1] -= 0.1

    def test_value_regression_is_exact(self, unit_world):
        """The loss is a square for each prefix alone: its one optimum is where the slope is 0."""
        twist = unit_world.optimal_table()
        scored = unit_world.scored(twist)
        assert torch.equal(scored.log_psi, unit_world.log_psi_star)
        assert float(flat_gradient(twist, cd_loss(scored)).abs().max()) < 1e-15
        twist.tables[1].data += 0.1
        assert float(flat_gradient(twist, cd_loss(unit_world.scored(twist))).abs().max()) > 1e-5


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
        """Where psi* is phi, each error is zero, of whatever sequences they are."""
        target, samples = drawn
        twist = Everything(target).optimal_table()
        scored = score(target, twist, samples)
        length = scored.live.sum(1)
        found = scored.log_psi.detach()[torch.arange(len(samples)), length - 1]
        assert float((found - samples.log_phi)[length < 3].abs().max()) < 1e-12
        assert float(rl_loss(scored).detach()) < 1e-20
        for t, prefix in enumerate(("c", "ac", "aac")):
            place = prefix_index(torch.tensor([["abc".index(each) for each in prefix]]), t)
            twist.tables[t].data[place] += 0.1
            assert float(rl_loss(score(target, twist, samples)).detach()) > 1e-7
            twist.tables[t].data[place] -= 0.1


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
