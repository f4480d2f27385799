"""Stepping by hand: rewound, pickled, broken off anywhere, nothing recorded is lost."""

import itertools
import pickle
from dataclasses import fields

import pytest
import torch
from interrupting import Interrupter
from smc.toys import TablePhi, chain, differing, eos_target, table_target
from tqdm.auto import tqdm

import tsmc_widgets as tw
from tsmc_widgets.errors import AllParticlesDeadError, PotentialError, Stopped, stop_when
from tsmc_widgets.twists import TableTwist


def table_session(**settings):
    return tw.start_smc(
        table_target(3, 4, seed=11),
        num_particles=5,
        twist=TableTwist.random(3, 4, seed=12),
        proposal=tw.TwistInduced(),
        ess_threshold=0.9,
        seed=3,
        **settings,
    )


def eos_session(**settings):
    return tw.start_smc(eos_target(4), num_particles=5, rule="always", seed=3, **settings)


def lm_session(lm):
    favoured = tw.TokenFunction(lambda tokens: 0.4 * (tokens % 3 == 0).sum(-1).double())
    target = tw.Target(lm, favoured, prompt="once upon a", num_steps=5)
    return tw.start_smc(target, num_particles=6, rule=tw.EveryNSteps(2), seed=3)


SESSIONS = {"table": table_session, "ends": eos_session}


@pytest.fixture(params=[*SESSIONS, "caches"])
def make(request):
    """What makes a fresh session of each kind, one of them of a model that keeps caches."""
    if request.param in SESSIONS:
        return SESSIONS[request.param]
    return lambda: lm_session(request.getfixturevalue("gpt2"))


class TestStepping:
    @pytest.mark.parametrize("name", SESSIONS)
    def test_steps_by_hand_are_a_run(self, name):
        session = SESSIONS[name]()
        assert session.t == 0
        assert session.trace.steps_done == 0
        assert session.trace.texts() == [""] * 5
        seen = []
        while not session.done:
            seen.append(session.step().t)
        assert seen == [1, 2, 3, 4]
        assert differing(session.trace, SESSIONS[name]().run()) == []

    def test_no_step_after_the_last(self):
        session = table_session()
        session.run()
        with pytest.raises(ValueError, match="all 4 steps have been taken"):
            session.step()
        assert session.run().done

    def test_rewinding_gives_the_same_bytes(self, make):
        session = make()
        whole = session.run()
        for t in range(whole.num_steps, -1, -1):
            session.rewind(t)
            assert session.t == session.trace.steps_done == t
            assert differing(session.run(), whole) == []

    @pytest.mark.parametrize("t", [-1, 5, 1.5])
    def test_rewinding_to_nowhere(self, t):
        session = table_session()
        session.run()
        with pytest.raises((ValueError, TypeError), match=str(t)):
            session.rewind(t)

    @pytest.mark.parametrize("name", SESSIONS)
    def test_a_pickled_state_goes_on(self, name):
        whole = SESSIONS[name]().run()
        session = SESSIONS[name]()
        while not session.done:
            session.step()
            state, records = session._progress
            session._progress = (pickle.loads(pickle.dumps(state)), records)
        assert differing(session.trace, whole) in ([], ["distinct"])
        assert bool((session.trace.columns.distinct <= whole.columns.distinct).all())

    def test_on_step_sees_every_record(self):
        seen = []
        table_session().run(on_step=lambda record: seen.append((record.t, record.ess.shape)))
        assert seen == [(t, (1,)) for t in (1, 2, 3, 4)]

    def test_a_bar_changes_nothing_and_closes(self, make, capsys):
        whole = make().run()
        assert capsys.readouterr().err == ""
        assert differing(make().run(progress=True), whole) == []
        shown = capsys.readouterr().err
        steps = f"{whole.num_steps}/{whole.num_steps}"
        assert all(words in shown for words in (steps, "tokens/s=", "distinct prefixes="))

        def fail(record):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            make().run(progress=True, on_step=fail)
        assert caught.value.trace.steps_done == 1
        assert not tqdm._instances

    def test_run_functions_show_the_bar(self, capsys):
        target = table_target(3, 4, seed=11)
        tw.run_smc(target, num_particles=2, progress=True)
        retained = tw.exact(target).sample(1, 0)
        tw.run_conditional_smc(target, retained=retained, num_particles=2, progress=True)
        assert capsys.readouterr().err.count("4/4") == 2
        with pytest.raises(TypeError, match="give progress=True to its session's run"):
            tw.start_smc(target, num_particles=2, progress=True)

    def test_stopped_within_a_pass_the_step_is_not_taken(self, checkpoint):
        lm = tw.HuggingFaceLM.from_pretrained(checkpoint("gpt2"), max_rows=2)
        whole, stopped = lm_session(lm).run(), []
        for at in range(12):
            session, looks = lm_session(lm), itertools.count()
            with (
                pytest.raises(Stopped) as caught,
                stop_when(lambda looks=looks, at=at: next(looks) == at),
            ):
                session.run()
            assert caught.value.trace.steps_done == session.t
            stopped.append(session.t)
            assert differing(session.run(), whole) == []
        assert max(stopped) > 1
        assert len(stopped) > 2 * len(set(stopped))


def interrupted(make, *, every, **options):
    """Interrupt a fresh run before each ``every``-th line, go on, compare with the whole run."""
    whole, count = make().run(), 0
    while True:
        session = make()
        interrupter = Interrupter(1 + every * count, **options)
        if not isinstance(interrupter.during(session.run), KeyboardInterrupt):
            return count
        count += 1
        trace = session.trace
        done = trace.steps_done
        for f in fields(trace.columns):
            found, expected = getattr(trace.columns, f.name), getattr(whole.columns, f.name)
            expected = expected[:done] if f.name == "distinct" else expected[:, :done]
            assert torch.equal(found, expected), interrupter.place
        assert differing(session.run(), whole) == [], interrupter.place


class TestInterrupts:
    def test_between_lines(self, make):
        assert interrupted(make, every=101) > 7

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_between_any_two_lines(self, make):
        assert interrupted(make, every=1) > 800

    def test_between_any_two_operations_of_the_session(self):
        assert interrupted(table_session, every=11, operations=True, files="api.py") > 14


class FailsOnce:
    """A potential of the user's that raises the first time."""

    def __init__(self):
        self.calls = 0

    def log_phi(self, tokens):
        self.calls += 1
        if self.calls == 1:
            raise ZeroDivisionError("once")
        return -tokens.sum(-1).double()


class FailingTwist(TableTwist):
    """Raises when it has read as many tokens as it was told."""

    def advance(self, tokens, carry, lm_step):
        self.reads = getattr(self, "reads", 0) + 1
        if self.reads == 7:
            raise OSError("the disk is gone")
        return super().advance(tokens, carry, lm_step)


class TestErrors:
    def test_a_potential_that_fails_costs_nothing(self):
        target = tw.Target(chain(), FailsOnce(), prompt="a", num_steps=4)
        session = tw.start_smc(target, num_particles=5)
        with pytest.raises(PotentialError, match="once") as caught:
            session.run()
        assert caught.value.trace.steps_done == 3
        trace = session.run()
        fine = FailsOnce()
        fine.calls = 1
        again = tw.Target(chain(), fine, prompt="a", num_steps=4)
        assert differing(trace, tw.run_smc(again, num_particles=5)) == []

    def test_an_exception_at_step_seven(self):
        target = tw.Target(chain(), tw.ContainsToken("b"), prompt="", num_steps=10)
        twist = FailingTwist.random(3, 10, seed=1)
        session = tw.start_smc(target, num_particles=8, twist=twist)
        with pytest.raises(OSError, match="disk is gone") as caught:
            session.run()
        assert caught.value.trace.steps_done == 6
        plain = TableTwist.random(3, 10, seed=1)
        expected = tw.run_smc(target, num_particles=8, twist=plain)
        assert differing(session.run(), expected) == ["info"]  # The twists' kinds alone differ.

    def test_dead_particles_stay_on_record(self):
        target = tw.Target(
            chain(), TablePhi(torch.full((3,) * 3, -torch.inf)), prompt="", num_steps=3
        )
        session = tw.start_smc(target, num_particles=4)
        message = r"All 4 weights are zero at step 3 of run 0.*Try a twist, more particles or a"
        for _ in range(2):
            with pytest.raises(AllParticlesDeadError, match=message) as caught:
                session.run()
            trace = caught.value.trace
            assert trace.done
            assert trace.log_z == -torch.inf
            assert float(trace.ess[-1]) == 0
            assert session.t == 2

    def test_a_potential_that_is_nan(self):
        nan = tw.TokenFunction(lambda tokens: tokens.sum(-1) * float("nan"))
        target = tw.Target(chain(), nan, prompt="a", num_steps=3)
        with pytest.raises(PotentialError, match="log phi = nan for the text") as caught:
            tw.run_smc(target, num_particles=4)
        assert caught.value.trace.steps_done == 2
