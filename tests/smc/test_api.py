"""What the run functions refuse, and what they say."""

import pytest
import torch
from smc.toys import chain, eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.smc.api import _check_retained
from tsmc_widgets.smc.proposals import as_proposal
from tsmc_widgets.twists import TableTwist
from tsmc_widgets.twists.protocol import as_twist


@pytest.fixture(scope="module")
def target():
    return table_target(3, 4, seed=11)


SETTINGS = [
    ({"num_particles": 0}, "num_particles must be an integer of at least 1; got 0"),
    ({"num_particles": -1}, "num_particles must be an integer of at least 1; got -1"),
    ({"num_particles": True}, "num_particles must be an integer of at least 1; got True"),
    ({"num_runs": 0}, "num_runs must be an integer of at least 1; got 0"),
    (
        {"resampler": "sytematic"},
        "resampler must be one of multinomial, residual, stratified, systematic; got 'sy",
    ),
    ({"rule": "often"}, "rule must be one of always, never, ess; got 'oft"),
    ({"rule": "always", "ess_threshold": 0.5}, "give rule or ess_threshold, not both"),
    ({"rule": "ess", "ess_threshold": 0.5}, "give rule or ess_threshold, not both"),
    *[
        ({"ess_threshold": value}, rf"ess_threshold must be a number in \[0, 1\]; got {value}")
        for value in (-0.1, 1.5, float("nan"))
    ],
    ({"seed": -1}, "seed must be .*-1"),
    ({"seed": 2**64}, f"{2**64}"),
    ({"num_partikles": 3}, "no keyword 'num_partikles': did you mean num_part"),
    ({"colour": 3}, "no keyword 'colour'; it has dead_runs, ess_thr"),
    (
        {"twist": TableTwist.random(5, 4, seed=0)},
        "twist has 5 tokens and the base model 3",
    ),
    ({"proposal": tw.TwistInduced()}, r"none was given: pass twist=\.\.\."),
    ({"dead_runs": "drop"}, "dead_runs must be one of raise, keep, warn; got 'drop'"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=[m[:30] for _, m in SETTINGS])
def test_settings_that_are_refused(settings, message, target):
    with pytest.raises((ValueError, TypeError), match=message):
        tw.run_smc(target, **{"num_particles": 2} | settings)


def test_things_in_the_wrong_place(target):
    for wrong in ("base", tw.TwistInduced, target.lm):
        with pytest.raises(TypeError, match=r"proposal must be Base\(\), .*; got"):
            as_proposal(wrong)
    for wrong in (tw.exact(target), TableTwist):
        with pytest.raises(TypeError, match=r"oracle.optimal_twist\(\); got"):
            as_twist(wrong)


def always_b(size):
    """A proposal whose model says nothing but its second token."""
    row = [float(token == 1) for token in range(size)]
    return tw.ModelProposal(tw.TabularLM.markov(row, [row] * size))


class TestRetained:
    @pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 5), (0, 4), (1, 1, 4)])
    def test_shapes(self, target, shape):
        with pytest.raises(ValueError, match=r"\(num_runs, 4\).*" + str(shape[0])):
            _check_retained(target, torch.zeros(shape, dtype=torch.int64))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
    def test_dtypes(self, target, dtype):
        with pytest.raises(ValueError, match=f"token ids; got dtype {dtype}"):
            _check_retained(target, torch.zeros(2, 4, dtype=dtype))

    @pytest.mark.parametrize(
        ("token", "options", "message"),
        [
            (3, {}, "token 3; the model has 3"),
            (-1, {}, r"smallest token of retained.*-1"),
            *[
                (0, {"resampler": scheme}, f"multinomial.*got '{scheme}'")
                for scheme in ("residual", "stratified", "systematic")
            ],
            (0, {"proposal": always_b(2)}, "has 2 tokens"),
            (0, {"proposal": always_b(3)}, "probability 0 to the retained path's token at st"),
        ],
    )
    def test_what_is_refused(self, target, token, options, message):
        with pytest.raises(ValueError, match=message):
            tw.run_conditional_smc(
                target, retained=torch.full((2, 4), token), num_particles=2, **options
            )

    def test_a_text_that_is_no_sample_of_sigma(self):
        target = tw.Target(chain(), tw.ContainsToken("c"), prompt="", num_steps=4)
        retained = torch.tensor([[0, 2, 0, 0], [0, 1, 0, 0]])
        with pytest.raises(ValueError, match="row 1, 'abaa', has phi = 0"):
            tw.run_conditional_smc(target, retained=retained, num_particles=2)

    def test_a_list_and_exact_samples_will_do(self):
        target = tw.Target(chain(), tw.ContainsToken("c"), prompt="", num_steps=4)
        listed = tw.run_conditional_smc(target, retained=[[0, 2, 0, 0]], num_particles=2)
        assert listed.num_runs == 1
        found = target.exact_samples(3, seed=0, progress=False)
        trace = tw.run_conditional_smc(target, retained=found, num_particles=2, num_runs=3)
        assert trace.num_runs == 3
        with pytest.raises(ValueError, match="num_runs must be the number of retained samples, 3"):
            tw.run_conditional_smc(target, retained=found, num_particles=2, num_runs=4)

    def test_text_after_its_end(self):
        target = eos_target(4)
        retained = torch.tensor([[0, target.eos_token_id, 0, 0]])
        with pytest.raises(ValueError, match="after its EOS"):
            tw.run_conditional_smc(target, retained=retained, num_particles=2)

    def test_it_stays_in_slot_nought(self, target):
        retained = tw.exact(target).sample(20, seed=0)
        trace = tw.run_conditional_smc(
            target,
            retained=retained,
            num_particles=3,
            twist=TableTwist.random(3, 4, seed=12),
            rule="always",
        )
        assert torch.equal(trace.columns.tokens[:, :, 0], retained)
        assert bool((trace.columns.ancestors[:, :, 0] == 0).all())
        assert trace.info.conditional


def test_proposals_from_another_model(target):
    other = tw.TabularLM.random(3, 4, seed=9)
    trace = tw.run_smc(target, num_particles=5, proposal=tw.ModelProposal(other))
    log_q = other.log_prob(trace.tokens, 0)
    torch.testing.assert_close(trace.paths("log_q")[0], log_q.double(), rtol=0, atol=1e-12)


def test_messages_are_a_prompt(gpt2, monkeypatch):
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    monkeypatch.setattr(gpt2.tokenizer, "chat_template", template)
    messages = [{"role": "user", "content": "once upon"}]
    target = tw.Target(gpt2, tw.Constant(), prompt=messages, num_steps=2)
    assert tw.run_smc(target, num_particles=2).prompt.split() == ["once", "upon"]
