import pytest
import torch
from targets.toys import every, letters

from tsmc_widgets.errors import ContextLengthError, PotentialError, UnknownTokenError
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets import Continuation, Infilling, Target


def log_p0(lm, prompt, tokens):
    """Log p0 of each row after a prompt, step by step."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    prompt = torch.tensor([lm.encode(prompt)] * len(tokens), dtype=torch.int64)
    prompt = prompt.reshape(len(tokens), -1)
    for t in range(tokens.shape[1]):
        step = lm.prefill(torch.cat([prompt, tokens[:, :t]], dim=1))
        total += step.log_probs.gather(1, tokens[:, t : t + 1])[:, 0]
    return total


@pytest.mark.parametrize("observed", ["ca", [2, 0], ["c", 0]])
@pytest.mark.parametrize("lm", [letters(), TabularLM.random(3, 8, seed=3)], ids=["chain", "tables"])
def test_a_continuation_is_what_p0_says_of_it(lm, observed):
    target = Target(lm, Continuation(observed), prompt="b", num_steps=3)
    tokens = every(3, 3)
    suffix = torch.tensor([[2, 0]] * 27)
    wanted = log_p0(lm, "b", torch.cat([tokens, suffix], 1)) - log_p0(lm, "b", tokens)
    torch.testing.assert_close(target.log_phi(tokens), wanted, rtol=0, atol=1e-12)
    assert target.potential.log_phi_max == 0


@pytest.mark.parametrize("c", [1, 2])
@pytest.mark.parametrize("prompt", ["", "a"])
def test_z_of_an_infilling_is_p0_of_its_suffix(c, prompt):
    lm = TabularLM.random(3, 8, seed=5)
    target = Target(lm, Infilling(num_tokens=c), prompt=prompt, num_steps=2)
    tokens = every(3, 2)
    full = every(3, 2 + c)
    p_full = log_p0(lm, prompt, full).exp()
    for o in every(3, c):
        log_z = target.condition(o).log_sigma_tilde(tokens).logsumexp(0)
        p_o = p_full[(full[:, 2:] == o).all(1)].sum()
        assert abs(log_z - p_o.log()) < 1e-10
        given = target.log_phi_given(tokens, o.expand(9, -1))
        torch.testing.assert_close(given, target.condition(o).log_phi(tokens))


def test_only_eos_follows_an_absorbing_eos():
    lm = letters(eos="c")
    tokens = torch.tensor([[0, 2], [2, 2], [0, 0]])
    ends = Target(lm, Continuation([2, 2]), prompt="a", num_steps=2, eos="absorb")
    log_p_eos = log_p0(lm, "aaa", torch.tensor([[2]]))[0]
    assert ends.log_phi(tokens).tolist() == [0.0, 0.0, log_p_eos.item()]
    goes_on = Target(lm, Continuation([0, 2]), prompt="a", num_steps=2, eos="absorb")
    assert goes_on.log_phi(tokens).isinf().tolist() == [True, True, False]
    ignored = Target(lm, Continuation([0, 2]), prompt="a", num_steps=2)
    assert ignored.log_phi(tokens).isfinite().all()


def test_with_absorbing_eos_z_is_p0_of_the_suffix_too():
    lm = letters(eos="c")
    target = Target(lm, Infilling(num_tokens=2), prompt="c", num_steps=2, eos="absorb")
    tokens = every(3, 2)
    total = sum(target.condition(o).log_sigma_tilde(tokens).exp().sum() for o in every(3, 2))
    assert abs(total - 1) < 1e-12


def test_powers_condition_too():
    target = Target(letters(), Infilling(num_tokens=2) ** 3.0, prompt="", num_steps=2)
    tokens = every(3, 2)
    fixed = target.condition("ab")
    assert fixed.describe().startswith('p("ab" | text)^3')
    plain = Target(letters(), Continuation("ab"), prompt="", num_steps=2)
    torch.testing.assert_close(fixed.log_phi(tokens), 3 * plain.log_phi(tokens))
    given = target.log_phi_given(tokens, torch.tensor([[0, 1]]).expand(9, -1))
    torch.testing.assert_close(given, fixed.log_phi(tokens))


def test_infilling_needs_its_observation():
    target = Target(letters(), Infilling(num_tokens=2), prompt="", num_steps=2)
    with pytest.raises(PotentialError, match=r"condition\(observed\)"):
        target.log_phi(every(3, 2))
    with pytest.raises(ValueError, match="num_tokens=2 tokens; got 1"):
        target.condition("a")
    with pytest.raises(ValueError, match="num_tokens=2 tokens; got 3"):
        Infilling(num_tokens=2).condition([0, 1, 2])
    with pytest.raises(ValueError, match="num_tokens must be an integer"):
        Infilling(num_tokens=0)


def test_errors():
    lm = TabularLM.random(3, 5, seed=0)
    with pytest.raises(ContextLengthError, match="make 6, and this model's context holds 5"):
        Target(lm, Continuation("ab"), prompt="a", num_steps=3)
    with pytest.raises(ContextLengthError, match="make 6"):
        Target(lm, Infilling(num_tokens=2), prompt="a", num_steps=3)
    with pytest.raises(UnknownTokenError, match="'z'"):
        Target(lm, Continuation("z"), prompt="a", num_steps=3)
    with pytest.raises(ValueError, match="non-empty"):
        Continuation("")


def test_descriptions():
    assert Continuation(" the end").describe() == 'p(" the end" | text)'
    assert Infilling(num_tokens=1).describe() == "p(next 1 token | text)"
    target = Target(letters(), Continuation([0, 2]), prompt="", num_steps=1)
    assert target.potential.describe() == 'p("ac" | text)'
