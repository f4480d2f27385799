"""The oracle: two ways to the same exact numbers, at any length, and honest where there is none."""

import math

import pytest
import torch
from scipy import stats
from smc.toys import chain, counted_reads, eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.errors import BudgetError
from tsmc_widgets.smc.exact import ChainOracle, EnumeratedOracle

POTENTIALS = {
    "contains": lambda: tw.ContainsToken("c"),
    "avoids": lambda: tw.AvoidsToken("c"),
    "regular expression": lambda: tw.MatchesRegex("(ab)*c?a+.*"),
    "count": lambda: tw.CountToken("b", at_least=1, at_most=2),
    "product": lambda: tw.ContainsToken("b") * tw.AvoidsToken("c"),
    "constant": lambda: tw.Constant(),
}


def pattern_target(name, *, num_steps=5, eos=None, prompt="a"):
    return tw.Target(
        chain(eos=eos),
        POTENTIALS[name](),
        prompt=prompt,
        num_steps=num_steps,
        eos="absorb" if eos else "ignore",
    )


def brute_force(target):
    """Z, the mass of each sequence, and the sequences, token by token from the tables."""
    size, steps = target.lm.vocab_size, target.num_steps
    every = torch.cartesian_prod(*[torch.arange(size)] * steps).reshape(-1, steps)
    if target.absorbs_eos:
        ended = (every == target.eos_token_id).cummax(dim=1).values
        every = every[~(ended & (every != target.eos_token_id)).any(1)]
    mass = (target.log_p(every) + target.log_phi(every)).exp()
    return every, mass, float(mass.sum())


class TestAgreement:
    @pytest.mark.parametrize("eos", [None, "c"])
    @pytest.mark.parametrize("name", POTENTIALS)
    def test_automaton_enumeration_and_brute_force(self, name, eos):
        target = pattern_target(name, eos=eos)
        every, mass, z = brute_force(target)
        by_chain, by_tree = tw.exact(target), EnumeratedOracle(target)
        assert isinstance(by_chain, ChainOracle)
        assert by_chain.log_z == pytest.approx(math.log(z), abs=1e-12)
        assert by_tree.log_z == pytest.approx(math.log(z), abs=1e-12)
        marginals = torch.stack(
            [
                torch.zeros(3, dtype=torch.float64).index_add(0, every[:, t], mass / z)
                for t in range(5)
            ]
        )
        torch.testing.assert_close(by_chain.marginals(), marginals, rtol=0, atol=1e-12)
        torch.testing.assert_close(by_tree.marginals(), marginals, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("eos", [None, "c"])
    @pytest.mark.parametrize("name", POTENTIALS)
    def test_both_optimal_twists_at_every_prefix(self, name, eos):
        target = pattern_target(name, eos=eos, num_steps=4)
        every, mass, _ = brute_force(target)
        full = torch.cat([target.prompt_tokens.expand(len(every), -1), every], dim=1)
        length = len(target.prompt_tokens)
        tables = [oracle.optimal_twist().log_psi(full, length).double() for oracle in
                  (tw.exact(target), EnumeratedOracle(target))]  # fmt: skip
        log_p = target.lm.log_prob(full, length).double()
        for row, text in enumerate(every.tolist()):
            for t in range(1, 5):
                if target.absorbs_eos and target.eos_token_id in text[:t]:
                    continue
                same = (every[:, :t] == every[row, :t]).all(1)
                psi = float(mass[same].sum()) / math.exp(float(log_p[row, :t].sum()))
                for table in tables:
                    found = math.exp(float(table[row, t - 1]))
                    assert found == pytest.approx(psi, rel=1e-10, abs=1e-300)

    def test_tables_that_are_no_chain_are_enumerated(self):
        target = table_target(3, 4, seed=2)
        oracle = tw.exact(target)
        assert isinstance(oracle, EnumeratedOracle)
        _, _, z = brute_force(target)
        assert oracle.log_z == pytest.approx(math.log(z), abs=1e-12)


class TestAnyLength:
    @pytest.mark.parametrize("name", POTENTIALS)
    def test_a_thousand_steps(self, name):
        target = pattern_target(name, num_steps=1000)
        oracle = tw.exact(target)
        marginals = oracle.marginals()
        assert math.isfinite(oracle.log_z)
        torch.testing.assert_close(
            marginals.sum(1), torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-9
        )

    def test_a_closed_form(self):
        """Independent tokens: P(no c in T) = (1 - p)^T."""
        row = [0.5, 0.3, 0.2]
        lm = tw.TabularLM.markov(row, [row] * 3, symbols="abc")
        for steps in (1, 10, 2000):
            avoids = tw.Target(lm, tw.AvoidsToken("c"), prompt="", num_steps=steps)
            contains = tw.Target(lm, tw.ContainsToken("c"), prompt="", num_steps=steps)
            log_none = steps * math.log(0.8)
            assert tw.exact(avoids).log_z == pytest.approx(log_none, rel=1e-12)
            expected = math.log(-math.expm1(log_none))
            assert tw.exact(contains).log_z == pytest.approx(expected, rel=1e-9, abs=1e-15)

    def test_its_twist_makes_long_runs_exact(self):
        target = pattern_target("regular expression", num_steps=60)
        oracle = tw.exact(target)
        trace = tw.run_smc(
            target,
            num_particles=8,
            num_runs=4,
            twist=oracle.optimal_twist(),
            proposal=tw.TwistInduced(),
        )
        assert float((trace.log_z - oracle.log_z).abs().max()) < 1e-10
        assert bool((trace.log_phi == 0).all())


class TestSamples:
    @pytest.mark.parametrize("kind", ["chain", "table", "ends"])
    def test_they_follow_sigma(self, kind):
        target = {
            "chain": lambda: pattern_target("count", num_steps=4),
            "table": lambda: table_target(3, 3, seed=2, zeros=0.3),
            "ends": lambda: eos_target(3),
        }[kind]()
        every, mass, z = brute_force(target)
        samples = tw.exact(target).sample(20_000, seed=5)
        weights = 3 ** torch.arange(target.num_steps - 1, -1, -1)
        counts = torch.bincount((samples * weights).sum(1), minlength=3**target.num_steps)
        counts = counts[(every * weights).sum(1)]
        assert int(counts.sum()) == 20_000
        assert int(counts[mass == 0].sum()) == 0
        likely = mass / z * 20_000 > 5
        found = [*counts[likely].tolist(), int(counts[~likely].sum())]
        chance = [*(mass / z)[likely].tolist(), float((mass / z)[~likely].sum())]
        if chance[-1] < 1e-12:
            found.pop(), chance.pop()
        expected = [20_000 * share / sum(chance) for share in chance]
        assert stats.chisquare(found, expected).pvalue > 1e-6

    @pytest.mark.parametrize("target", [pattern_target("count"), table_target(3, 4, seed=2)])
    def test_an_address_gives_the_same_samples(self, target):
        oracle = tw.exact(target)
        assert torch.equal(oracle.sample(7, seed=1), oracle.sample(7, seed=1))
        assert not torch.equal(oracle.sample(50, seed=1), oracle.sample(50, seed=2))

    def test_the_oracle_in_the_columns_of_a_run(self):
        target = pattern_target("count")
        oracle = tw.exact(target)
        trace = oracle.trace(30, seed=1)
        assert trace.done
        assert trace.log_z == pytest.approx(oracle.log_z, abs=1e-10)
        assert trace.weights.numpy() == pytest.approx([1 / 30] * 30, abs=1e-12)
        assert bool((trace.log_phi == 0).all())


class TestRefused:
    def test_too_many_sequences(self):
        match = r"would pass 100 sequences at step 5 of 6 \(vocabulary 3\): use a smaller vocab"
        with pytest.raises(BudgetError, match=match):
            tw.exact(table_target(3, 6, seed=0), max_sequences=100)

    def test_a_large_vocabulary_is_told_before_the_model_reads(self, gpt2, monkeypatch):
        target = tw.Target(gpt2, tw.Constant(), prompt="once", num_steps=4)
        read = counted_reads(monkeypatch, gpt2)
        with pytest.raises(BudgetError, match="at step 3 of 4"):
            tw.exact(target, max_sequences=10_000)
        assert read == [gpt2.vocab_size]

    def test_the_budget_counts_what_is_possible(self):
        """Forbidden transitions cost nothing: this chain has one text of each length."""
        lm = tw.TabularLM.markov([1.0, 0.0], [[0.0, 1.0], [1.0, 0.0]], symbols="ab")
        silent = tw.TokenFunction(lambda tokens: -0.5 * tokens.sum(-1).double())
        target = tw.Target(lm, silent, prompt="", num_steps=40)
        assert tw.exact(target, max_sequences=1).log_z == pytest.approx(-10.0, abs=1e-12)

    @pytest.mark.parametrize("kind", ["chain", "table"])
    def test_a_sigma_that_does_not_exist(self, kind):
        phi = tw.ContainsToken("c") * tw.AvoidsToken("c")
        if kind == "table":
            phi = phi * tw.TokenFunction(lambda tokens: tokens.sum(-1).double())
        oracle = tw.exact(tw.Target(chain(), phi, prompt="", num_steps=3))
        assert oracle.log_z == -math.inf
        for use in (oracle.marginals, lambda: oracle.sample(3, seed=0)):
            with pytest.raises(ValueError, match="Z is zero"):
                use()

    @pytest.mark.parametrize("target", [pattern_target("count"), table_target(3, 4, seed=2)])
    def test_no_samples(self, target):
        with pytest.raises(ValueError, match="at least 1; got 0"):
            tw.exact(target).sample(0, seed=0)
