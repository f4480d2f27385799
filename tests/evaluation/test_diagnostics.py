"""Diagnostics of runs and twists against what is known by enumeration."""

import math

import numpy as np
import pytest
import torch
from smc.toys import chain, eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import (
    estimate_step_divergences,
    increment_variance,
    profiles,
    run_diagnostics,
    step_divergences,
)
from tsmc_widgets.twists import TableTwist


def by_hand(target, oracle, twist, t):
    """KL(sigma_t || pi_t) from dictionaries over prefixes."""
    length = len(target.prompt_tokens)
    sigma, p0, psi = {}, {}, {}
    for row, log_sigma, log_p, log_phi in zip(
        oracle.tokens.tolist(), oracle.log_sigma, oracle.log_p, oracle.log_phi, strict=True
    ):
        key = tuple(row[:t])
        sigma[key] = sigma.get(key, 0.0) + math.exp(log_sigma)
        p0[key] = p0.get(key, 0.0) + math.exp(log_p)
        ended = target.absorbs_eos and target.eos_token_id in key
        if ended or t == target.num_steps:
            psi[key] = math.exp(log_phi)
        else:
            whole = torch.tensor([[*target.prompt_tokens.tolist(), *key]])
            psi[key] = math.exp(twist.log_psi(whole, length)[0, -1])
    norm = sum(p0[key] * psi[key] for key in p0)
    return sum(s * math.log(s * norm / (p0[key] * psi[key])) for key, s in sigma.items() if s > 0)


@pytest.mark.parametrize("make", [lambda: table_target(3, 4, seed=11), eos_target])
def test_step_divergences_are_the_enumerated_ones(make):
    target = make()
    oracle = tw.exact(target)
    twist = TableTwist.random(3, 4, seed=12, prompt_length=len(target.prompt_tokens))
    frame = step_divergences(target, twist, oracle)
    for row in frame.itertuples():
        assert row.value == pytest.approx(by_hand(target, oracle, twist, row.t), abs=1e-10)
    assert frame["value"].iloc[-1] == pytest.approx(0.0, abs=1e-12)
    best = step_divergences(target, oracle.optimal_twist(), oracle)
    assert best["value"].abs().max() < 1e-12


def test_estimated_step_divergences_hold_the_exact_ones(target, oracle, twist):
    exact = step_divergences(target, twist, oracle)["value"].iloc[:-1]
    found = estimate_step_divergences(
        target,
        twist,
        oracle.sample(400, 1),
        log_z=oracle,
        num_particles=64,
        num_runs=400,
        rollouts=64,
    )
    assert set(found["kind"]) == {"estimate"}
    reach = (found["high"] - found["low"]) / 2
    assert ((found["value"] - exact).abs() < 4.5 / 1.96 * reach).all()
    assert (reach < 0.5).all()


def test_rollouts_that_never_hit_leave_the_upper_side():
    rare = tw.Target(chain(), tw.MatchesRegex("c{5}"), prompt="a", num_steps=5)
    oracle = tw.exact(rare)
    found = estimate_step_divergences(
        rare, tw.LookAheadTwist(rare), oracle.sample(10, 1), log_z=oracle, rollouts=4, num_runs=5
    )
    assert found["kind"].iloc[0] == "upper estimate"
    assert found["value"].notna().all()


def test_increments_of_the_optimal_twist_never_vary(target, oracle, twist):
    how = {"proposal": tw.TwistInduced(), "num_particles": 8, "num_runs": 20}
    best = increment_variance(tw.run_smc(target, twist=oracle.optimal_twist(), **how))
    assert best["variance"].abs().max() < 1e-20
    assert best["relative_variance"].abs().max() < 1e-12
    assert (increment_variance(tw.run_smc(target, twist=twist, **how))["variance"][1:] > 0).all()


def test_increment_variance_by_hand(target, twist):
    trace = tw.run_smc(target, twist=twist, num_particles=5, num_runs=3, rule="never")
    frame = increment_variance(trace)
    for t in range(4):
        values = []
        for run in range(3):
            log_a = trace.columns.log_increment[run, t].numpy()
            before = (
                trace.columns.log_weights[run, t] - trace.columns.log_increment[run, t]
            ).numpy()
            weights = np.exp(before) / np.exp(before).sum()
            values.append(np.cov(log_a, aweights=weights, ddof=0))
        assert frame["variance"].iloc[t] == pytest.approx(np.mean(values), abs=1e-10)


def test_relative_variance_is_what_the_effective_sample_size_loses(target):
    """From equal weights, K / ESS = 1 + relative variance."""
    trace = tw.run_smc(target, num_particles=9, num_runs=1, rule="never")
    frame = increment_variance(trace)
    assert 9 / float(trace.ess[-1]) == pytest.approx(1 + frame["relative_variance"].iloc[-1])


def test_dead_particles_and_runs_are_no_numbers():
    rare = tw.Target(chain(), tw.MatchesRegex("c{3}"), prompt="a", num_steps=3)
    trace = tw.run_smc(rare, num_particles=4, num_runs=6, dead_runs="keep")
    frame = increment_variance(trace)
    assert frame["num_runs"].tolist() == [6, 6, 6]
    assert frame["variance"].notna().all()


def test_profiles_are_means_over_runs(target, twist):
    trace = tw.run_smc(target, twist=twist, num_particles=6, num_runs=30)
    frame = profiles(trace)
    ess = frame[frame["quantity"] == "ESS"]
    assert ess["mean"].to_numpy() == pytest.approx(trace.columns.ess.mean(0).numpy() / 6)
    alive = frame[frame["quantity"] == "surviving ancestors"]
    assert alive["mean"].iloc[-1] == 1.0
    assert alive["mean"].is_monotonic_increasing
    assert ((frame["low"] <= frame["mean"]) & (frame["mean"] <= frame["high"])).all()
    assert profiles(tw.run_smc(target, num_particles=3))["low"].isna().all()


@pytest.mark.slow
def test_intervals_of_step_signals_stay_in_range_and_cover(target, twist):
    """Of eight runs at a time: against enumeration at step 1, and many runs at the others."""
    size, groups = 16, 100
    how = {"num_particles": size, "twist": twist, "ess_threshold": 0.9}
    whole = tw.run_smc(target, num_runs=4000, seed=5, **how)
    traces = [tw.run_smc(target, num_runs=8, first_run=8 * i, **how) for i in range(groups)]
    variances = [increment_variance(trace).set_index("t") for trace in traces]
    log_p = target.lm.prefill(target.prompt_tokens.unsqueeze(0)).log_probs[0].double()
    log_psi = twist.log_tables[0].detach().double().flatten()
    centred = log_psi - (log_p.exp() * log_psi).sum()
    exact = float((log_p.exp() * centred**2).sum()) * (1 - 1 / size)
    assert increment_variance(whole)["variance"][0] == pytest.approx(exact, rel=0.02)
    assert 0.88 <= coverage(variances, 1, exact) <= 1
    for t in (2, 3):
        truth = increment_variance(whole).set_index("t")["variance"][t]
        assert 0.88 <= coverage(variances, t, truth) <= 1
    assert all((frame["low"].dropna() > 0).all() for frame in variances)
    for quantity in ("ESS", "surviving ancestors"):
        frames = [of_quantity(trace, quantity) for trace in traces]
        truth = of_quantity(whole, quantity)["mean"]
        for t in (1, 2, 3):
            assert 0.88 <= coverage(frames, t, truth[t]) <= 1
        for frame in frames:
            known = frame.dropna()
            assert ((known["low"] > 0) & (known["high"] <= 1)).all()


def of_quantity(trace, quantity):
    frame = profiles(trace)
    return frame[frame["quantity"] == quantity].set_index("t")


def coverage(frames, t, truth):
    rows = [frame.loc[t] for frame in frames]
    known = [row for row in rows if not math.isnan(row["low"])]
    assert len(known) > len(rows) / 2
    return np.mean([row["low"] <= truth <= row["high"] for row in known])


def test_runs_that_agree_have_no_interval():
    """Not one of 0.46 nats about a variance or a share, which is what agreeing log Z have."""
    target = tw.load_problem("rainy-week").target()
    best = tw.exact(target).optimal_twist()
    trace = tw.run_smc(target, num_runs=8, num_particles=16, twist=best, proposal=tw.TwistInduced())
    assert increment_variance(trace)["low"].isna().all()
    frame = of_quantity(trace, "surviving ancestors")
    assert frame["low"][:-1].isna().all()
    assert frame.iloc[-1][["mean", "low", "high"]].tolist() == [1, 1, 1]


def test_each_run_speaks_for_itself(target, twist):
    trace = tw.run_smc(
        target, twist=twist, num_particles=100, num_runs=400, resampler="multinomial", seed=2
    )
    frame = run_diagnostics(trace)
    assert len(frame) == 400
    assert frame["log_z"].to_numpy() == pytest.approx(trace.log_z.numpy())
    # The mean of what single runs say of their variance is the variance over runs.
    told, spread = frame["single_run_variance"].mean(), frame["log_z"].var()
    error = math.hypot(frame["single_run_variance"].sem(), spread * math.sqrt(2 / 399))
    assert abs(told - spread) < 4.5 * error
    assert frame["k_hat"].notna().all()
    assert frame["survivors"].between(0, 1).all()
    assert len(run_diagnostics(trace.run(3))) == 1
    plain = run_diagnostics(tw.run_smc(target, twist=twist, num_particles=100, num_runs=2))
    assert plain["single_run_variance"].isna().all()
    assert plain["k_hat"].notna().all()
