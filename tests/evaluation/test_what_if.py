"""Powers of psi and forks: what must agree with ordinary runs does."""

import pytest
import torch
from evaluation.plants import Changed, powered, random_toy
from smc.toys import differing_columns, eos_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation.what_if import fork, power_sweep


def test_the_best_power_of_a_cubed_twist_is_a_third():
    target = random_toy()
    best = tw.exact(target)
    cubed = Changed(target, best.optimal_twist(), powered(3))
    frame = power_sweep(target, cubed, powers=(0.0, 1 / 3, 1.0), num_particles=8)
    assert frame["spread"].idxmin() == 1
    assert frame["lower"][1] == pytest.approx(best.log_z, abs=1e-10)
    assert frame["upper"][1] == pytest.approx(best.log_z, abs=1e-10)
    assert frame["ess"][1] == pytest.approx(1)


def test_a_fork_with_the_drawn_token_is_the_run_itself():
    for target in (random_toy(), eos_target()):
        twist = tw.exact(target).optimal_twist()
        plain = tw.run_smc(
            target, num_particles=6, twist=twist, proposal=tw.TwistInduced(), seed=4, top_k=3
        )
        drawn = int(plain.columns.tokens[0, 0, 2])
        same = fork(target, twist, particle=2, t=1, token=drawn, num_particles=6, seed=4, top_k=3)
        assert differing_columns(same.before, plain) == []
        assert differing_columns(same.after, plain) == []


def test_a_fork_changes_one_token_and_what_follows_from_it():
    target = random_toy()
    twist = tw.TableTwist.random(3, 5, seed=1, prompt_length=1)
    twist_run = {"num_particles": 6, "seed": 4}
    plain = fork(target, twist, particle=2, t=3, token=0, **twist_run).before
    token = (int(plain.columns.tokens[0, 2, 2]) + 1) % 3
    found = fork(target, twist, particle=2, t=3, token=token, **twist_run)
    a, b = found.before.columns, found.after.columns
    assert torch.equal(a.tokens[:, :2], b.tokens[:, :2])
    moved = (a.tokens[0, 2] != b.tokens[0, 2]).nonzero().flatten().tolist()
    assert moved == [2]
    assert int(b.tokens[0, 2, 2]) == token
    row = found.table.set_index("token").loc[token]
    assert row["chosen"] == "forced"
    increment = row["log_p"] - row["log_q"] + row["log_psi"]
    before = float(found.after.columns.log_psi[0, 1, int(b.ancestors[0, 2, 2])])
    assert float(b.log_increment[0, 2, 2]) == pytest.approx(increment - before, abs=1e-10)
    assert (found.table["log_star_error"] == 0).all()
    with pytest.raises(ValueError, match="token must be"):
        fork(target, twist, particle=2, t=3, token=3, **twist_run)
