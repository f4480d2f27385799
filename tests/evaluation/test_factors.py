"""What each factor does to a run, against everything enumerated."""

import math

import pytest
import torch
from smc.observed import infilling
from smc.toys import chain, eos_target, z_score

import tsmc_widgets as tw
from tsmc_widgets.errors import AllParticlesDeadError
from tsmc_widgets.evaluation.run_quality import arrivals, break_down
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.twists.protocol import TwistStep

WORTH = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
SOFT = tw.TokenFunction(lambda tokens: WORTH[tokens].sum(-1))
STEPS = 4


def product():
    return tw.AvoidsToken("c") * tw.ContainsToken("b") * SOFT


def make_target(potential):
    return tw.Target(chain(), potential, prompt="ab", num_steps=STEPS)


def everything(target):
    """All texts, with log p0 of each and log phi of each factor."""
    grid = torch.cartesian_prod(*[torch.arange(3)] * STEPS)
    logs = [factor.log_phi(grid).double() for factor in target.potential.factors()]
    return grid, target.log_p(grid), torch.stack(logs, dim=1)


def test_weighed_exactly_it_is_exact():
    target = make_target(product())
    grid, log_p, log_phi = everything(target)
    shares = break_down(["avoid", "contain", "soft"], log_phi, log_p + log_phi.sum(1), log_p)
    p0 = log_p.exp()
    has_c, lacks_b = (grid == 2).any(1), (grid != 1).all(1)
    sigma = torch.where(has_c | lacks_b, 0.0, p0 * log_phi[:, 2].exp())
    sigma = sigma / sigma.sum()
    assert shares[2].mean_log_phi == pytest.approx(float((sigma * log_phi[:, 2]).sum()), abs=1e-12)
    assert [share.mean_log_phi for share in shares[:2]] == [0.0, 0.0]
    assert shares[0].killed == pytest.approx(float(p0[has_c].sum()), abs=1e-12)
    assert shares[1].killed == pytest.approx(float(p0[lacks_b].sum()), abs=1e-12)
    assert shares[0].killed_alone == pytest.approx(float(p0[has_c & ~lacks_b].sum()), abs=1e-12)
    assert shares[2].killed == shares[2].killed_alone == 0.0


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("twisted", [False, True])
def test_killed_shares_estimate_the_mass_of_p0(threshold, twisted):
    """Without psi_{T-1} what arrives is p0; times Z_hat of that step it is unbiased with one."""
    target = make_target(product())
    grid, log_p, log_phi = everything(target)
    twist = LastToken() if twisted else None
    settings = {"num_particles": 16, "num_runs": 300, "ess_threshold": threshold, "seed": 3}
    settings["dead_runs"] = "keep"
    # Its own proposal would draw no token at T that phi forbids, and nothing would be killed.
    trace = tw.run_smc(target, twist=twist, proposal=tw.Base(), **settings)
    psi = twist.log_psi_of[grid[:, -2]] if twisted else torch.zeros(len(grid), dtype=torch.float64)
    mass = (log_p + psi).exp()
    before = trace.columns.log_z[:, -2].exp()
    every = [tw.factor_breakdown(trace, target, run=run) for run in range(300)]
    for i in range(3):
        killed = torch.tensor([shares[i].killed for shares in every], dtype=torch.float64)
        expected = float(mass[torch.isneginf(log_phi[:, i])].sum())
        found = arrived(trace) * before * killed
        assert found.std() > 0 or expected == 0
        if expected:
            assert abs(z_score(found, expected)) < 4.5


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("twisted", [False, True])
def test_texts_that_end_early_count_where_they_end(threshold, twisted):
    """Each text at its end has p0 psi_{t-1}, whether or not phi then rules it out.

    Psi_0 is the run's mean of psi_1 over what goes on.
    """
    target = eos_target(potential=tw.ContainsToken("b") * tw.AvoidsToken("a"))
    oracle, twist = EnumeratedOracle(target), LastToken() if twisted else None
    trace = tw.run_smc(
        target, twist=twist, proposal=tw.Base(), num_particles=8, num_runs=600,
        ess_threshold=threshold, seed=5, dead_runs="keep",
    )  # fmt: skip
    length = 1 + (oracle.tokens[:, :-1] != target.eos_token_id).cumprod(1).sum(1)
    before = oracle.tokens.gather(1, (length - 2).clamp(min=0).unsqueeze(1)).squeeze(1)
    log_psi = torch.where(length > 1, LastToken.log_psi_of[before], 0.0)
    mass = (oracle.log_p + twisted * log_psi).exp()
    going = (trace.columns.tokens[:, 0] != target.eos_token_id).double()
    psi = trace.columns.log_psi[:, 0].exp() if twisted else torch.ones_like(going)
    level = ((going * psi).sum(1) / going.sum(1)).log()
    found = []
    for run in range(trace.num_runs):
        texts, log_weights = arrivals(trace.run(run), target)
        first = texts[:, 0] == target.eos_token_id
        found.append((texts, log_weights - torch.where(first, level[run], 0.0)))
    for factor in target.potential.factors():
        zero = torch.isneginf(factor.log_phi(oracle.tokens))
        early = zero & (length < target.num_steps)
        assert float(oracle.log_p[early].exp().sum()) > 0.05
        sums = torch.stack([w[torch.isneginf(factor.log_phi(s))].exp().sum() for s, w in found])
        assert abs(z_score(sums, float(mass[zero].sum()))) < 4.5
    if threshold == 0.0 and not twisted:
        # All texts keep the weight 1 / K, so that the shares are unbiased too.
        every = [tw.factor_breakdown(trace, target, run=run) for run in range(trace.num_runs)]
        killed = torch.tensor([shares[0].killed for shares in every], dtype=torch.float64)
        lacks_b = (oracle.tokens != 1).all(1)
        assert abs(z_score(killed, float(mass[lacks_b].sum()))) < 4.5


def arrived(trace):
    """Mean weight that the last draw adds before phi: with q = p0 it is 1."""
    columns = trace.columns
    logs = columns.log_weights[:, -2].clone()
    logs[columns.resampled[:, -1]] = 0.0
    after = logs + columns.log_p[:, -1] - columns.log_q[:, -1]
    return (after.logsumexp(1) - logs.logsumexp(1)).exp()


class LastToken:
    """Psi by the last token alone."""

    log_psi_of = torch.tensor([0.4, -0.6, 0.2], dtype=torch.float64)

    def prefill(self, tokens, base=None):
        return TwistStep(self.log_psi_of.expand(len(tokens), -1), None)

    def advance(self, tokens, carry, base=None):
        return self.prefill(tokens)

    def log_psi(self, tokens, prompt_length, base=None):
        return self.log_psi_of[tokens[:, prompt_length:]]


def test_factors_add_up_to_log_phi():
    target = make_target(tw.ContainsToken("b") * SOFT**2)
    trace = tw.run_smc(target, num_particles=32, seed=1)
    shares = tw.factor_breakdown(trace, target)
    alive = trace.weights > 0
    total = float((trace.weights[alive] * trace.log_phi[alive]).sum())
    assert math.fsum(share.mean_log_phi for share in shares) == pytest.approx(total, abs=1e-12)
    assert [share.name for share in shares] == [f.describe() for f in target.potential.factors()]


def test_another_potential_is_one_factor():
    target = make_target(SOFT)
    (share,) = tw.factor_breakdown(tw.run_smc(target, num_particles=8, seed=1), target)
    assert share.name == SOFT.describe()
    assert share.killed == 0.0


def test_where_nothing_is_left_means_are_unknown():
    shares = break_down(
        ["none"], torch.full((2, 1), -math.inf).double(), *torch.full((2, 2), -math.inf).double()
    )
    assert math.isnan(shares[0].mean_log_phi)
    assert math.isnan(shares[0].killed)
    target = make_target(tw.AvoidsToken("a") * tw.ContainsToken("a"))
    session = tw.start_smc(target, num_particles=4, seed=0)
    with pytest.raises(AllParticlesDeadError):
        session.run()
    shares = tw.factor_breakdown(session.trace, target)
    assert all(math.isnan(share.mean_log_phi) for share in shares)
    assert math.fsum(share.killed for share in shares) == pytest.approx(1.0)


def test_a_conditional_target_is_read_under_its_observation():
    target = infilling()
    trace = tw.run_smc(target, num_particles=8, observed=[[2], [0]], seed=1)
    for run in range(2):
        (share,) = tw.factor_breakdown(trace, target, run=run)
        expected = float((trace.weights[run] * trace.log_phi[run]).sum())
        assert share.mean_log_phi == pytest.approx(expected, abs=1e-9)


def test_the_wrong_target_and_a_run_on_its_way_are_refused(tmp_path):
    target = make_target(SOFT)
    trace = tw.run_smc(target, num_particles=4, seed=0)
    loaded = tw.SMCTrace.load(trace.save(tmp_path / "trace"))
    random = tw.TabularLM.random(3, 9, seed=0)
    for other, message in (
        (make_target(SOFT**2), "potential"),
        (tw.Target(chain(), SOFT, prompt="ab", num_steps=3), "number of steps 4"),
        (tw.Target(chain(), SOFT, prompt="aa", num_steps=4), r"prompt \[0, 1\], .* has \[0, 0\]"),
        (tw.Target(random, SOFT, prompt="ab", num_steps=4), "another model: .* other weights"),
    ):
        for each in (trace, loaded):
            with pytest.raises(ValueError, match=f"of another target: {message}.*was sampled"):
                tw.factor_breakdown(each, other)
            with pytest.raises(ValueError, match="of another target"):
                tw.RunPanels(each, target=other)
    same = make_target(SOFT)
    assert tw.factor_breakdown(loaded, same) == tw.factor_breakdown(trace, target)
    session = tw.start_smc(target, num_particles=4, seed=0)
    session.step()
    with pytest.raises(ValueError, match="stands at step 1 of 4"):
        tw.factor_breakdown(session.trace, target)
