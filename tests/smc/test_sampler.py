"""What a sweep computes: against enumeration, against another way to it, and by statistics."""

import math

import pytest
import torch
from smc.toys import TablePhi, chain, eos_target, table_target, z_score

import tsmc_widgets as tw
from tsmc_widgets.numerics import logmeanexp
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.twists import TableTwist

SCHEMES = ["multinomial", "residual", "stratified", "systematic"]
RULES = [tw.Always(), tw.EveryNSteps(2), tw.ESSBelow(0.5), tw.ESSBelow(1.0), tw.Never()]


TARGETS = {
    "table": lambda: table_target(3, 4, seed=5),
    "zeros": lambda: table_target(3, 4, seed=6, zeros=0.4),
    "ends": lambda: eos_target(4),
    "pattern": lambda: tw.Target(chain(), tw.MatchesRegex("a.*ca"), prompt="b", num_steps=5),
    "one step": lambda: table_target(3, 1, seed=7),
}


class TestOptimalTwist:
    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("name", TARGETS)
    def test_every_run_gives_log_z(self, name, scheme):
        target = TARGETS[name]()
        oracle = EnumeratedOracle(target)
        trace = tw.run_smc(
            target,
            num_particles=3,
            num_runs=200,
            twist=oracle.optimal_twist(),
            proposal=tw.TwistInduced(),
            resampler=scheme,
            rule="always",
        )
        assert float((trace.log_z - oracle.log_z).abs().max()) < 1e-10
        assert float((trace.ess - 3).abs().max()) < 1e-9

    @pytest.mark.parametrize("name", TARGETS)
    def test_samples_are_exact(self, name):
        target = TARGETS[name]()
        oracle = EnumeratedOracle(target)
        trace = tw.run_smc(
            target,
            num_particles=1,
            num_runs=20_000,
            twist=oracle.optimal_twist(),
            proposal=tw.TwistInduced(),
            seed=3,
        )
        for t in range(target.num_steps):
            counts = torch.bincount(trace.tokens[:, 0, t], minlength=target.lm.vocab_size)
            for token, share in enumerate(oracle.marginals()[t].tolist()):
                spread = math.sqrt(20_000 * share * (1 - share))
                gap = float(counts[token]) - 20_000 * share
                assert abs(gap) <= 4.5 * spread + 1e-6

    def test_conditional_runs_give_it_too(self):
        target = table_target(3, 4, seed=5)
        oracle = EnumeratedOracle(target)
        trace = tw.run_conditional_smc(
            target,
            retained=oracle.sample(50, seed=0),
            num_particles=3,
            twist=oracle.optimal_twist(),
            proposal=tw.TwistInduced(),
        )
        assert float((trace.log_z - oracle.log_z).abs().max()) < 1e-10


class TestOtherWays:
    def test_without_resampling_it_is_iwae(self):
        target, twist = table_target(3, 4, seed=5), TableTwist.random(3, 4, seed=1)
        settings = {"num_particles": 6, "num_runs": 20, "twist": twist, "rule": "never"}
        trace = tw.run_smc(target, proposal=tw.TwistInduced(), **settings)
        log_q = trace.paths("log_q").sum(-1)
        flat = trace.tokens.reshape(-1, 4)
        weights = target.log_sigma_tilde(flat).reshape(20, 6) - log_q
        torch.testing.assert_close(trace.log_weights, weights, rtol=0, atol=1e-10)
        torch.testing.assert_close(trace.log_z, logmeanexp(weights), rtol=0, atol=1e-10)

    def test_one_particle_is_the_elbo(self):
        target, twist = table_target(3, 4, seed=5), TableTwist.random(3, 4, seed=1)
        oracle = EnumeratedOracle(target)
        settings = {"num_particles": 1, "twist": twist, "proposal": tw.TwistInduced()}
        below = tw.run_smc(target, num_runs=30, rule="always", **settings)
        f_q = target.log_sigma_tilde(below.tokens[:, 0]) - below.paths("log_q").sum(-1)[:, 0]
        torch.testing.assert_close(below.log_z, f_q, rtol=0, atol=1e-10)
        exact = oracle.sample(30, seed=2)
        above = tw.run_conditional_smc(target, retained=exact, rule="always", **settings)
        assert torch.equal(above.tokens[:, 0], exact)
        g_q = target.log_sigma_tilde(exact) - above.paths("log_q").sum(-1)[:, 0]
        torch.testing.assert_close(above.log_z, g_q, rtol=0, atol=1e-10)

    def test_log_z_is_the_product_of_mean_increments(self):
        """With resampling at every step: Z_hat = prod_t mean_k a_t^k."""
        target, twist = table_target(3, 4, seed=5), TableTwist.random(3, 4, seed=1)
        trace = tw.run_smc(target, num_particles=5, num_runs=7, twist=twist, rule="always")
        product = logmeanexp(trace.columns.log_increment).sum(1)
        torch.testing.assert_close(trace.log_z, product, rtol=0, atol=1e-12)

    def test_at_the_end_phi_stands_for_the_twist(self):
        target = table_target(3, 4, seed=5)
        twist = TableTwist.random(3, 4, seed=1, scale=9.0)
        trace = tw.run_smc(target, num_particles=5, num_runs=7, twist=twist)
        phi = target.log_phi(trace.tokens.reshape(-1, 4)).reshape(7, 5)
        assert torch.equal(trace.log_phi, phi)

    def test_an_ended_text_gets_phi_at_once_and_changes_no_more(self):
        target = eos_target(4)
        twist = TableTwist.random(3, 4, seed=2, prompt_length=2)
        trace = tw.run_smc(target, num_particles=8, num_runs=50, twist=twist, rule="never")
        ended = (trace.tokens == target.eos_token_id).cumsum(-1) > 0
        assert bool(ended.any())
        after = torch.zeros_like(ended)
        after[..., 1:] = ended[..., :-1]
        assert bool((trace.tokens[after] == target.eos_token_id).all())
        for column in ("log_p", "log_q", "log_increment"):
            assert bool((trace.paths(column)[after] == 0).all())
        phi = target.log_phi(trace.tokens.reshape(-1, 4)).reshape(50, 8, 1)
        expected = phi.expand(50, 8, 4)[ended]
        assert torch.equal(trace.paths("log_psi")[ended], expected)

    def test_a_potential_that_gives_all_next_tokens_makes_the_last_step_exact(self):
        class Given(TablePhi):
            def log_phi_next(self, tokens):
                return self.log_table.expand(len(tokens), -1)

        plain = table_target(3, 1, seed=7)
        table = plain.potential.log_table
        target = tw.Target(plain.lm, Given(table), prompt="", num_steps=1)
        trace = tw.run_smc(target, num_particles=2, num_runs=9, proposal=tw.TwistInduced())
        oracle = EnumeratedOracle(plain)
        assert float((trace.log_z - oracle.log_z).abs().max()) < 1e-10


class TestStatistics:
    """Many runs in one batch, bad twists, an asymmetric phi; the tolerance is a z-score."""

    RUNS = 40_000

    @pytest.mark.parametrize("eos", [False, True], ids=["fixed", "eos"])
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.describe())
    def test_variance_from_one_genealogy_is_unbiased(self, rule, eos):
        """E[Z_hat**2 V] = Var(Z_hat) (Lee and Whiteley 2018, theorem 1)."""
        target = eos_target() if eos else table_target(3, 4, seed=11)
        trace = tw.run_smc(
            target,
            num_particles=6,
            num_runs=self.RUNS,
            twist=TableTwist.random(3, 6, seed=12),
            resampler="multinomial",
            rule=rule,
            seed=5,
        )
        z_hat = trace.log_z.exp()
        alone = z_hat**2 * trace.log_z_variance()
        spread = (z_hat - z_hat.mean()) ** 2
        gap = alone - spread * self.RUNS / (self.RUNS - 1)
        assert abs(z_score(gap, 0.0)) < 4.5

    def test_bounds_stand_on_their_sides(self):
        target = table_target(3, 4, seed=11)
        oracle = EnumeratedOracle(target)
        twist = TableTwist.random(3, 4, seed=12)
        below = tw.run_smc(target, num_particles=4, num_runs=self.RUNS, twist=twist)
        above = tw.run_conditional_smc(
            target, retained=oracle.sample(self.RUNS, seed=1), num_particles=4, twist=twist
        )
        assert z_score(below.log_z, oracle.log_z) < -4.5
        assert z_score(above.log_z, oracle.log_z) > 4.5


class TestBytes:
    """Nothing that should not matter changes a bit."""

    def runs(self, **settings):
        return tw.run_smc(
            table_target(3, 4, seed=11),
            num_particles=5,
            twist=TableTwist.random(3, 4, seed=12),
            **settings,
        ).columns

    def test_one_run_out_of_many(self):
        many, one = self.runs(num_runs=500, seed=4), self.runs(first_run=321, seed=4)
        for name in ("tokens", "ancestors", "log_weights", "ess", "log_z"):
            assert torch.equal(getattr(many, name)[321:322], getattr(one, name)), name

    def test_recording_more(self):
        plain, recorded = self.runs(num_runs=9), self.runs(num_runs=9, top_k=3)
        assert torch.equal(plain.tokens, recorded.tokens)
        assert torch.equal(plain.log_weights, recorded.log_weights)

    def test_another_seed_is_another_run(self):
        assert not torch.equal(self.runs(seed=0).tokens, self.runs(seed=1).tokens)

    def test_recorded_tables_hold_the_likeliest_tokens(self):
        trace = tw.run_smc(
            table_target(3, 4, seed=11),
            num_particles=5,
            twist=TableTwist.random(3, 4, seed=12),
            proposal=tw.TwistInduced(),
            top_k=3,
        )
        for t, table in enumerate(trace.tables):
            chosen = trace.columns.tokens[:, t]
            at = (table.tokens[table.rows] == chosen.unsqueeze(-1)).double().argmax(-1)
            for name in ("log_p", "log_q"):
                values = getattr(table, name)[table.rows].gather(-1, at.unsqueeze(-1)).squeeze(-1)
                assert torch.equal(values, getattr(trace.columns, name)[:, t])

    def test_recorded_tables_rank_by_base_proposal_and_twist(self):
        target, twist = table_target(6, 3, seed=11), TableTwist.random(6, 3, seed=12)
        everything, few = (
            tw.run_smc(target, num_particles=5, twist=twist, top_k=k).tables for k in (6, 2)
        )
        for whole, table in zip(everything, few, strict=True):
            wanted = (whole.log_p + whole.log_psi).log_softmax(1)
            highest = torch.stack([whole.log_p, whole.log_q, wanted.to(whole.log_p)]).amax(0)
            order = highest.argsort(dim=1, descending=True)[:, :2]
            assert torch.equal(table.tokens, whole.tokens.gather(1, order))

    def test_tokens_of_the_tables_have_texts(self):
        trace = tw.run_smc(table_target(6, 3, seed=1), num_particles=2, top_k=6)
        assert set(trace.token_texts) == set(range(6))
        assert all(isinstance(text, str) for text in trace.token_texts.values())


def test_four_thousand_particles_and_one():
    target = tw.Target(chain(), tw.ContainsToken("c"), prompt="a", num_steps=6)
    for size in (1, 4096):
        trace = tw.run_smc(target, num_particles=size, dead_runs="keep")
        assert trace.tokens.shape == (size, 6)
        assert bool((trace.columns.distinct <= size).all())
