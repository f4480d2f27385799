"""What the run functions refuse, and what they say."""

import pytest
import torch
from models.checkpoints import make_checkpoint
from smc.toys import chain, eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.errors import ContextLengthError, UnknownTokenError
from tsmc_widgets.smc.api import _check_parts, _check_retained
from tsmc_widgets.twists import TableTwist


@pytest.fixture(scope="module")
def target():
    return table_target(3, 4, seed=11)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return tw.load_language_model(make_checkpoint("gpt2", tmp_path_factory.mktemp("gpt2")))


class TestTargets:
    def test_no_steps(self):
        with pytest.raises(ValueError, match="num_steps must be an integer of at least 1; got 0"):
            tw.Target(chain(), tw.Constant(), prompt="a", num_steps=0)

    def test_an_empty_prompt(self, lm):
        with pytest.raises(ValueError, match=r"prompt is empty.*give a prompt"):
            tw.Target(lm, tw.Constant(), prompt="", num_steps=3)

    def test_an_unknown_token(self):
        with pytest.raises(UnknownTokenError, match="'z'"):
            tw.Target(chain(), tw.Constant(), prompt="az", num_steps=3)
        with pytest.raises(ValueError, match="3"):
            tw.Target(chain(), tw.Constant(), prompt=[0, 3], num_steps=3)

    def test_an_overlong_prompt(self, lm):
        with pytest.raises(
            ContextLengthError, match=r"30 tokens and num_steps=3 make 33.*holds 32"
        ):
            tw.Target(lm, tw.Constant(), prompt=[5] * 30, num_steps=3)


class TestSettings:
    @pytest.mark.parametrize("size", [0, -1, True])
    def test_number_of_particles(self, target, size):
        match = f"num_particles must be an integer of at least 1; got {size}"
        with pytest.raises((ValueError, TypeError), match=match):
            tw.run_smc(target, num_particles=size)

    def test_number_of_runs(self, target):
        with pytest.raises(ValueError, match="num_runs must be an integer of at least 1; got 0"):
            tw.run_smc(target, num_particles=2, num_runs=0)

    def test_an_unknown_resampler(self, target):
        match = "resampler must be one of multinomial, residual, stratified, systematic; got 'sy"
        with pytest.raises(ValueError, match=match):
            tw.run_smc(target, num_particles=2, resampler="sytematic")

    def test_an_unknown_rule(self, target):
        with pytest.raises(ValueError, match="rule must be one of always, never, ess; got 'oft"):
            tw.run_smc(target, num_particles=2, rule="often")
        with pytest.raises(ValueError, match="give rule or ess_threshold, not both"):
            tw.run_smc(target, num_particles=2, rule="always", ess_threshold=0.5)

    @pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
    def test_a_threshold_that_is_no_fraction(self, target, threshold):
        with pytest.raises(ValueError, match=r"fraction of K between 0 .* and 1"):
            tw.run_smc(target, num_particles=2, ess_threshold=threshold)

    @pytest.mark.parametrize("seed", [-1, 2**64])
    def test_a_seed_out_of_range(self, target, seed):
        with pytest.raises(ValueError, match=f"seed must be .*{seed}|{seed}"):
            tw.run_smc(target, num_particles=2, seed=seed)

    def test_an_unknown_option(self, target):
        with pytest.raises(TypeError, match="no keyword 'num_partikles': did you mean num_part"):
            tw.run_smc(target, num_particles=2, num_partikles=3)
        with pytest.raises(TypeError, match="no keyword 'colour'; it has dead_runs, ess_thr"):
            tw.run_smc(target, num_particles=2, colour=3)

    def test_things_in_the_wrong_place(self, target):
        for wrong in ("base", tw.TwistInduced, target.lm):
            with pytest.raises(TypeError, match=r"proposal must be Base\(\), .*; got"):
                _check_parts(target, wrong, None, {})
        for wrong in (tw.exact(target), TableTwist):
            with pytest.raises(TypeError, match=r"oracle.optimal_twist\(\); got"):
                _check_parts(target, None, wrong, {})

    def test_a_twist_of_another_vocabulary(self, target):
        with pytest.raises(ValueError, match="twist has 5 tokens and the base model 3"):
            tw.run_smc(target, num_particles=2, twist=TableTwist.random(5, 4, seed=0))

    def test_a_target_that_waits_for_an_observation(self, lm):
        infilling = tw.Target(lm, tw.Infilling(num_tokens=2), prompt="once", num_steps=3)
        with pytest.raises(ValueError, match=r"waits for an observation: sample target\.cond"):
            tw.run_smc(infilling, num_particles=2)

    def test_a_twist_proposal_without_a_twist(self, target):
        with pytest.raises(ValueError, match=r"none was given: pass twist=\.\.\."):
            tw.run_smc(target, num_particles=2, proposal=tw.TwistInduced())

    def test_what_to_do_with_dead_runs(self, target):
        with pytest.raises(
            ValueError, match="dead_runs must be one of raise, keep, warn; got 'drop'"
        ):
            tw.run_smc(target, num_particles=2, dead_runs="drop")


class TestRetained:
    @pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 5), (0, 4), (1, 1, 4)])
    def test_shapes(self, target, shape):
        with pytest.raises(ValueError, match=r"\(num_runs, 4\).*" + str(shape[0])):
            _check_retained(target, torch.zeros(shape, dtype=torch.int64))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
    def test_dtypes(self, target, dtype):
        with pytest.raises(ValueError, match=f"token ids; got dtype {dtype}"):
            _check_retained(target, torch.zeros(2, 4, dtype=dtype))

    def test_values(self, target):
        with pytest.raises(ValueError, match="token 3; the model has 3"):
            tw.run_conditional_smc(target, retained=torch.full((2, 4), 3), num_particles=2)
        with pytest.raises(ValueError, match=r"smallest token of retained.*-1"):
            tw.run_conditional_smc(target, retained=torch.full((2, 4), -1), num_particles=2)

    @pytest.mark.parametrize("resampler", ["residual", "stratified", "systematic"])
    def test_schemes_that_would_be_biased(self, target, resampler):
        with pytest.raises(ValueError, match=f"multinomial.*got '{resampler}'"):
            tw.run_conditional_smc(
                target,
                retained=torch.zeros(2, 4, dtype=torch.int64),
                num_particles=2,
                resampler=resampler,
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

    def test_a_proposal_that_can_not_make_it(self, target):
        other = tw.TabularLM.markov([0.0, 0.5, 0.5], [[0.0, 0.5, 0.5]] * 3)
        with pytest.raises(ValueError, match="probability 0 to the retained path's token at st"):
            tw.run_conditional_smc(
                target,
                retained=torch.zeros(2, 4, dtype=torch.int64),
                num_particles=2,
                proposal=tw.ModelProposal(other),
            )

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


def test_messages_are_a_prompt(lm):
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    target = tw.Target(
        lm, tw.Constant(), prompt=[{"role": "user", "content": "once upon"}], num_steps=2
    )
    assert tw.run_smc(target, num_particles=2).prompt.split() == ["once", "upon"]
