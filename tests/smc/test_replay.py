"""A re-weighted record is the fresh run to the byte, and each condition for it is needed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from smc.toys import TablePhi, chain, differing, reweight

import tsmc_widgets as tw
from tsmc_widgets.errors import AllParticlesDeadError
from tsmc_widgets.smc import replay
from tsmc_widgets.smc.replay import CannotReweightError, Recording, ReplaySession
from tsmc_widgets.twists import TableTwist

T = 5
ENDING, PLAIN = chain(eos="c"), tw.TabularLM.random(3, T, seed=5)
TWIST = TableTwist.random(3, T, seed=12, prompt_length=2)
START = {"num_particles": 12, "num_runs": 3, "seed": 7, "top_k": 2, "dead_runs": "keep"}


def phi(seed, zeros=0.0):
    generator = torch.Generator().manual_seed(seed)
    table = 1.5 * torch.randn(*(3,) * T, generator=generator, dtype=torch.float64)
    table[torch.rand(table.shape, generator=generator) < zeros] = -torch.inf
    return TablePhi(table)


def target(potential, lm=ENDING, prompt="ab", eos="absorb", num_steps=T):
    if lm is PLAIN:
        prompt, eos = "", "ignore"
    return tw.Target(lm, potential, prompt=prompt, num_steps=num_steps, eos=eos)


def recorded(over, **how):
    session = tw.start_smc(over, **START | how)
    return Recording(session.run(), over, session.config)


def config_of(over, **how):
    return tw.start_smc(over, **START | how).config


HOWS = {
    "base": {},
    "twist": {"twist": TWIST},
    "twist-induced": {"twist": TWIST, "proposal": tw.TwistInduced()},
    "induced by another": {"proposal": tw.TwistInduced(TWIST), "rule": "ess"},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("rule", ["always", "ess", "never"])
@pytest.mark.parametrize("lm", [PLAIN, ENDING], ids=["plain", "ending"])
@pytest.mark.parametrize("zeros", [0.0, 0.6])
def test_reweighed_is_fresh_in_every_column(how, rule, lm, zeros):
    twist = TableTwist.random(3, T, seed=12, prompt_length=0 if lm is PLAIN else 2)
    chosen = {k: twist if v is TWIST else v for k, v in HOWS[how].items()} | {"rule": rule}
    if how == "induced by another":
        chosen["proposal"] = tw.TwistInduced(twist)
    old = recorded(target(phi(1), lm), **chosen)
    new = target(phi(2, zeros), lm)
    config = config_of(new, **chosen)
    fresh = tw.SMCSession(new, config).run()
    try:
        again = reweight(old, new, config)
    except CannotReweightError:
        # Only where texts end and are judged on the way may a decision change.
        assert lm is ENDING
        assert rule != "never"
        columns = old.trace.columns, fresh.columns
        assert any(
            not torch.equal(*(getattr(c, name) for c in columns))
            for name in ("resampled", "ancestors")
        )
    else:
        assert differing(again, fresh) == []
        assert "log_weights" in differing(again, old.trace)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
    rule=st.sampled_from(["always", "ess", "never"]),
    ends=st.booleans(),
)
def test_what_is_said_is_what_a_fresh_run_does(seed, scale, rule, ends):
    """Re-weighed exactly where no decision of the fresh run differs; a small change may do."""
    lm = ENDING if ends else PLAIN
    first = phi(seed)
    moved = TablePhi(first.log_table + scale * phi(seed + 1).log_table)
    old = recorded(target(first, lm), rule=rule, seed=seed)
    new = target(moved, lm)
    config = config_of(new, rule=rule, seed=seed)
    fresh = tw.SMCSession(new, config).run()
    same = all(
        torch.equal(getattr(old.trace.columns, name), getattr(fresh.columns, name))
        for name in ("resampled", "ancestors")
    )
    session = ReplaySession(new, config, old)
    assert differing(session.run(), fresh) == []
    assert session.reweighed == same
    assert bool(session.why_not) != same


# The reason that is given, and a run that only this condition refuses.
VIOLATIONS = {
    "the model differs": lambda: (target(phi(2), chain(eos="c"), "ba"), {}),
    "the prompt differs": lambda: (target(phi(2), prompt="ba"), {}),
    "what EOS does differs": lambda: (target(phi(2), eos="ignore"), {}),
    "num_particles differs": lambda: (target(phi(2)), {"num_particles": 9}),
    "the noise differs": lambda: (target(phi(2)), {"seed": 8}),
    "the resampling differs": lambda: (target(phi(2)), {"rule": "always"}),
    "ψ differs, and steers the run from the first step on": lambda: (
        target(phi(2)),
        {"twist": TWIST},
    ),
    "q differs, and draws other tokens": lambda: (
        target(phi(2)),
        {"proposal": tw.TwistInduced(TWIST)},
    ),
    "q draws the last token by φ itself": lambda: (
        target(tw.CountToken("b", at_least=2)),
        {"proposal": tw.TwistInduced()},
    ),
    "what is recorded differs": lambda: (target(phi(2)), {"top_k": 3}),
}


@pytest.mark.parametrize("reason", VIOLATIONS)
def test_each_condition_is_needed(reason, monkeypatch):
    """Refused by this condition alone, and without it something wrong would be given out."""
    new, how = VIOLATIONS[reason]()
    base = {"rule": "never"}
    if reason == "q draws the last token by φ itself":
        old = recorded(target(tw.ContainsToken("b")), rule="never", proposal=tw.TwistInduced())
    else:
        old = recorded(target(phi(1)), **base)
    config = config_of(new, **base | how)
    with pytest.raises(CannotReweightError, match=reason):
        reweight(old, new, config)
    left_out = {reason, "the prompt differs"} if reason == "the model differs" else {reason}
    true = replay.conditions
    monkeypatch.setattr(
        replay, "conditions", lambda *run: [pair for pair in true(*run) if pair[1] not in left_out]
    )
    fresh = tw.SMCSession(new, config).run()
    try:
        wrong = reweight(old, new, config)
    except (CannotReweightError, RuntimeError, IndexError):
        # Without the condition nothing at all would come out, or another one refuses too.
        kinds = ("num_particles", "the resampling", "what is recorded", "what EOS does")
        assert reason.removesuffix(" differs") in kinds
    else:
        assert differing(wrong, fresh)


def test_a_length_of_its_own_and_half_a_record_are_refused():
    old = recorded(target(tw.ContainsToken("b")))
    longer = target(tw.ContainsToken("b"), num_steps=T + 1)
    with pytest.raises(CannotReweightError, match="num_steps differs"):
        reweight(old, longer, config_of(longer))
    session = tw.start_smc(old.target, **START)
    session.step()
    half = Recording(session.trace, old.target, session.config)
    with pytest.raises(CannotReweightError, match="did not reach its last step"):
        reweight(half, old.target, session.config)


def test_phi_that_waits_is_refused():
    joint = tw.Target(PLAIN, tw.Infilling(num_tokens=1), prompt="", num_steps=2)
    old = recorded(target(phi(1), PLAIN))
    config = replace(old.config, observed=None)
    with pytest.raises(CannotReweightError):
        reweight(old, joint, config)
    failed = [reason for holds, reason in replay.conditions(old, joint, config) if not holds]
    assert any("waits" in reason for reason in failed)


def test_decisions_are_taken_again(monkeypatch):
    """Without looking at the decisions, texts that ended early would give a wrong trace."""
    old = recorded(target(phi(1)), rule="always")
    new = target(phi(2))
    config = config_of(new, rule="always")
    with pytest.raises(CannotReweightError, match="other particles would be resampled"):
        reweight(old, new, config)
    monkeypatch.setattr(replay, "_check_decisions", lambda *_: None)
    assert differing(reweight(old, new, config), tw.SMCSession(new, config).run())


def test_a_rule_that_is_an_object_of_its_own_is_not_trusted():
    class Odd:
        def due(self, step, ess, num_particles):
            return torch.full_like(ess, step % 2 == 0, dtype=torch.bool)

        def describe(self):
            return "odd"

    old = recorded(target(phi(1), PLAIN), rule=Odd())
    new = target(phi(2), PLAIN)
    with pytest.raises(CannotReweightError, match="the resampling differs"):
        reweight(old, new, config_of(new, rule=Odd()))
    fresh = tw.SMCSession(new, config_of(new, rule=old.config.rule)).run()
    assert differing(reweight(old, new, replace(old.config)), fresh) == []


def test_dead_runs_are_told_as_a_fresh_run_tells_them():
    nothing = TablePhi(torch.full((3,) * T, -torch.inf, dtype=torch.float64))
    how = {"dead_runs": "raise", "rule": "never"}
    old = recorded(target(phi(1), PLAIN), **how)
    new = target(nothing, PLAIN)
    session = ReplaySession(new, config_of(new, **how), old)
    with pytest.raises(AllParticlesDeadError) as told:
        session.step()
    with pytest.raises(AllParticlesDeadError) as fresh:
        tw.SMCSession(new, config_of(new, **how)).run()
    assert str(told.value) == str(fresh.value)
    assert differing(session.trace, fresh.value.trace) == []
    with pytest.raises(AllParticlesDeadError):
        session.step()


def test_conditional_runs_are_reweighted_with_their_sample_in_place():
    """The retained path is only a path: what was exact under the old phi need not be now."""
    over = target(phi(1), PLAIN)
    retained = tw.exact(over).sample(3, seed=1)
    how = {**START, "resampler": "multinomial", "retained": retained}
    session = tw.start_smc(over, **how)
    old = Recording(session.run(), over, session.config)
    new = target(phi(2), PLAIN)
    fresh = tw.SMCSession(new, session.config).run()
    assert differing(reweight(old, new, session.config), fresh) == []


def test_no_model_is_asked(monkeypatch):
    old = recorded(target(phi(1), PLAIN), twist=TableTwist.random(3, T, seed=12))
    new = target(phi(2), PLAIN)

    def asked(*_, **__):
        raise AssertionError("a model was asked")

    monkeypatch.setattr(PLAIN, "prefill", asked)
    monkeypatch.setattr(PLAIN, "advance", asked)
    assert reweight(old, new, old.config).done


def test_the_potential_is_asked_for_the_batches_of_a_fresh_run():
    batches = []

    class Judge:
        labels = ("low", "high")

        def logits(self, texts):
            batches.append(list(texts))
            return torch.tensor([[0.1 * len(t), 0.3 * t.count("a")] for t in texts])

    old = recorded(target(phi(1)), rule="never")
    new = target(tw.ClassProbability(Judge(), label="high"))
    config = config_of(new, rule="never")
    reweight(old, new, config)
    again, batches[:] = list(batches), []
    new = target(tw.ClassProbability(Judge(), label="high"))
    tw.SMCSession(new, config).run()
    assert again == batches
