"""What a trace tells of a run: lineages, survivors, tables of samples, and how far to trust it."""

import math
from dataclasses import replace

import pytest
import torch
from smc.toys import chain, eos_target, table_target, z_score

import tsmc_widgets as tw
from tsmc_widgets.smc import genealogy
from tsmc_widgets.smc.noise import AddressedNoise
from tsmc_widgets.twists import TableTwist


@pytest.fixture(scope="module")
def runs():
    return tw.run_smc(
        table_target(3, 5, seed=11),
        num_particles=6,
        num_runs=4,
        twist=TableTwist.random(3, 5, seed=12),
        resampler="multinomial",
        rule="always",
        seed=1,
    )


def walk_back(ancestors, particle):
    """Slots of one particle's lineage, the slow way."""
    slots = [particle]
    for t in range(len(ancestors) - 1, 0, -1):
        slots.append(int(ancestors[t][slots[-1]]))
    return slots[::-1]


class TestGenealogy:
    def test_lineages(self, runs):
        for run in range(4):
            for particle in range(6):
                expected = walk_back(runs.columns.ancestors[run].tolist(), particle)
                assert runs.lineage(particle, run=run).tolist() == expected

    def test_paths_follow_lineages(self, runs):
        for run in range(4):
            for particle in range(6):
                slots = runs.lineage(particle, run=run)
                tokens = runs.columns.tokens[run][torch.arange(5), slots]
                assert torch.equal(runs.tokens[run, particle], tokens)

    def test_survivors(self, runs):
        for run in range(4):
            lineages = [runs.lineage(particle, run=run).tolist() for particle in range(6)]
            expected = [len({slots[t] for slots in lineages}) for t in range(5)]
            assert runs.surviving_ancestors()[run].tolist() == expected
        assert bool((runs.surviving_ancestors()[:, -1] == 6).all())

    def test_without_resampling_all_survive(self):
        trace = tw.run_smc(table_target(3, 5, seed=11), num_particles=6, rule="never")
        assert trace.surviving_ancestors().tolist() == [6] * 5
        assert trace.lineage(4).tolist() == [4] * 5

    @pytest.mark.parametrize("particle", [-1, 6])
    def test_no_such_particle(self, runs, particle):
        with pytest.raises(ValueError, match=rf"particle must be in 0\.\.5; got {particle}"):
            runs.lineage(particle)

    def test_no_such_run(self, runs):
        with pytest.raises(ValueError, match=r"run must be in 0\.\.3; got 9"):
            runs.lineage(0, run=9)

    def test_variance_formula_by_hand(self):
        """Two particles, one resampling after which both share an ancestor: V = 1."""
        ancestors = torch.tensor([[[0, 1], [0, 0]]])
        resampled = torch.tensor([[False, True]])
        weights = torch.tensor([[[0.5, 0.5], [0.3, 0.7]]], dtype=torch.float64)
        together = genealogy.log_z_variance(ancestors, resampled, weights, None)
        assert together.tolist() == [1.0]
        apart = torch.tensor([[[0, 1], [0, 1]]])
        value = genealogy.log_z_variance(apart, resampled, weights, None)
        assert value.tolist() == pytest.approx([1 - 4 * 2 * 0.3 * 0.7], abs=1e-12)

    def test_a_lag_as_long_as_the_run_adds_up_all_steps(self, runs):
        whole = runs.log_z_variance(lag=5)
        assert whole.shape == (4,)
        assert torch.equal(whole, runs.log_z_variance(lag=50))
        assert bool(torch.isfinite(whole).all())

    def test_fixed_lag_estimates_the_variance(self):
        """Its mean over runs is near the variance of log Z_hat for many particles."""
        trace = tw.run_smc(
            table_target(3, 5, seed=11),
            num_particles=400,
            num_runs=400,
            twist=TableTwist.random(3, 5, seed=12),
            resampler="multinomial",
            rule="always",
            seed=2,
        )
        alone = trace.log_z_variance(lag=3)
        spread = float(trace.log_z.var())
        # The variance of 400 normal values is known to 7 %.
        assert abs(float(alone.mean()) / spread - 1) < 4.5 * math.sqrt(2 / 399)

    @pytest.mark.parametrize("resampler", ["systematic", "stratified", "residual"])
    def test_one_run_cannot_tell_the_variance_under_dependent_ancestors(self, resampler):
        """There Z_hat**2 V is not Var(Z_hat) on average: under systematic ones it is negative."""
        target = table_target(3, 5, seed=11)
        trace = tw.run_smc(target, num_particles=6, resampler=resampler, rule="always")
        with pytest.raises(ValueError, match=f"under {resampler} resampling.*num_runs=8"):
            trace.log_z_variance()
        unresampled = tw.run_smc(target, num_particles=6, resampler=resampler, rule="never")
        assert math.isfinite(unresampled.log_z_variance())

    def test_one_conditional_run_cannot_tell_the_variance(self):
        target = table_target(3, 5, seed=11)
        sample = tw.exact(target).sample(1, seed=1)
        trace = tw.run_conditional_smc(target, retained=sample, num_particles=4)
        with pytest.raises(ValueError, match="under conditional SMC"):
            trace.log_z_variance()

    def test_variance_needs_a_step_and_two_particles(self):
        target = table_target(3, 5, seed=11)
        session = tw.start_smc(target, num_particles=1, resampler="multinomial")
        with pytest.raises(ValueError, match="no step has been recorded"):
            session.trace.log_z_variance()
        session.step()
        assert math.isnan(session.trace.log_z_variance())


class TestSamples:
    def test_frame(self, runs):
        frame = runs.to_frame()
        assert list(frame.columns) == [
            "run", "particle", "text", "weight", "log_weight", "log_phi", "log_p",
        ]  # fmt: skip
        assert len(frame) == 24
        assert frame.groupby("run").weight.sum().to_numpy() == pytest.approx([1] * 4, abs=1e-12)
        target = table_target(3, 5, seed=11)
        flat = runs.tokens.reshape(24, 5)
        assert frame.log_phi.to_numpy() == pytest.approx(target.log_phi(flat).numpy())
        assert frame.log_p.to_numpy() == pytest.approx(target.log_p(flat).numpy())
        assert list(frame.text) == [text for row in runs.texts() for text in row]

    def test_resampled_frame_draws_by_weight(self):
        trace = tw.run_smc(table_target(3, 5, seed=11), num_particles=6, seed=1)
        frame = trace.resampled_frame(40_000, seed=3)
        assert "weight" not in frame
        counts = frame.particle.value_counts().reindex(range(6), fill_value=0).to_numpy()
        for count, weight in zip(counts, trace.weights.tolist(), strict=True):
            spread = math.sqrt(40_000 * weight * (1 - weight))
            assert abs(count - 40_000 * weight) < 4.5 * spread + 1e-9
        assert trace.resampled_frame(seed=3).equals(trace.resampled_frame(seed=3))
        assert len(trace.resampled_frame(seed=3)) == 6

    def test_resampled_frame_draws_anew(self, monkeypatch):
        """Its uniforms have an address that no step of any run has, and each step has its own."""
        asked = []
        uniform = AddressedNoise.uniform

        def seen(noise, *, step, use, num_particles):
            asked.append((step, use))
            return uniform(noise, step=step, use=use, num_particles=num_particles)

        monkeypatch.setattr(AddressedNoise, "uniform", seen)
        trace = tw.run_smc(table_target(3, 5, seed=11), num_particles=6, rule="always")
        steps = [(t, use) for t in range(1, 6) for use in ("resample", "token")][1:]
        assert asked == steps
        trace.resampled_frame(seed=0)
        assert len(asked) == len(set(asked)) == len(steps) + 1

    def test_one_run_keeps_its_tables(self):
        runs = tw.run_smc(table_target(3, 5, seed=11), num_particles=6, num_runs=3, top_k=2)
        one = runs.run(1)
        assert len(one.tables) == 5
        for table, whole in zip(one.tables, runs.tables, strict=True):
            assert torch.equal(table.rows, whole.rows[1:2])

    def test_texts_end_at_their_eos(self):
        trace = tw.run_smc(eos_target(4), num_particles=30, seed=2)
        for text, tokens in zip(trace.texts(), trace.tokens.tolist(), strict=True):
            kept = tokens[: tokens.index(2)] if 2 in tokens else tokens
            assert text == "".join("abc"[token] for token in kept)

    def test_one_run_of_several(self, runs):
        one = runs.run(2)
        assert one.num_runs == 1
        assert isinstance(one.log_z, float)
        assert one.log_z == float(runs.log_z[2])
        assert one.texts() == runs.texts()[2]
        assert torch.equal(one.ess, runs.ess[2])
        with pytest.raises(ValueError, match=r"run must be in 0\.\.3; got 4"):
            runs.run(4)

    def test_before_the_end(self):
        session = tw.start_smc(table_target(3, 5, seed=11), num_particles=6)
        session.step()
        trace = session.trace
        assert (trace.done, trace.steps_done, trace.num_steps) == (False, 1, 5)
        assert bool(torch.isnan(trace.log_phi).all())
        assert len(trace.to_frame()) == 6
        assert "steps=1/5" in repr(trace)


def with_log_weights(log_weights):
    """A trace of one step with the given weights."""
    runs, size = log_weights.shape
    target = tw.Target(chain(), tw.Constant(), prompt="", num_steps=1)
    trace = tw.run_smc(target, num_particles=size, num_runs=runs)
    columns = replace(trace.columns, log_weights=log_weights.unsqueeze(1))
    return replace(trace, columns=columns)


class TestParetoK:
    @pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
    def test_tails_of_known_shape(self, shape):
        """Weights u**-shape have a Pareto tail; the fit leans on a prior of ten weights at 0.5."""
        generator = torch.Generator().manual_seed(0)
        uniforms = torch.rand(60, 4096, generator=generator, dtype=torch.float64)
        trace = with_log_weights(-shape * uniforms.log())
        tail = 3 * 64
        expected = (tail * shape + 5) / (tail + 10)
        assert abs(z_score(trace.k_hat(), expected)) < 4.5

    def test_dead_particles_count_as_the_smallest_weights(self):
        generator = torch.Generator().manual_seed(0)
        log_weights = -0.5 * torch.rand(1, 400, generator=generator, dtype=torch.float64).log()
        alive = with_log_weights(log_weights).k_hat()
        dead = log_weights.clone()
        dead[0, log_weights[0] < log_weights.median()] = -torch.inf
        assert with_log_weights(dead).k_hat() == pytest.approx(alive, abs=1e-9)

    def test_too_few_particles_or_equal_weights(self):
        few = tw.run_smc(table_target(3, 5, seed=11), num_particles=24)
        assert math.isnan(few.k_hat())
        equal = tw.run_smc(
            tw.Target(chain(), tw.Constant(), prompt="", num_steps=3), num_particles=50
        )
        assert math.isnan(equal.k_hat())

    def test_one_number_for_each_run(self):
        trace = tw.run_smc(table_target(3, 5, seed=11), num_particles=50, num_runs=3)
        assert trace.k_hat().shape == (3,)
