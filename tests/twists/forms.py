"""The forms of twists that learn, as the tests make them."""

import torch

import tsmc_widgets as tw

LMS = ["gpt2", "llama", "mistral"]
PROMPT_LENGTH = 3
FORMS = {
    "linear": lambda lm, **options: tw.LinearHeadTwist(lm, **options),
    "mlp": lambda lm, **options: tw.MLPHeadTwist(lm, width=24, **options),
    "tied": lambda lm, **options: tw.TiedHeadTwist(lm, width=24, **options),
    "tied, linear": lambda lm, **options: tw.TiedHeadTwist(lm, depth=0, **options),
    "body": lambda lm, **options: tw.BodyTwist(lm, **options),
    "body, mlp": lambda lm, **options: tw.BodyTwist(lm, head="mlp", **options),
    "lora": lambda lm, **options: tw.LoRATwist(lm, rank=4, **options),
}
CONDITIONAL = {
    "class, head": lambda lm, **options: tw.ConditionalHeadTwist(lm, num_classes=3, **options),
    "tokens, head": lambda lm, **options: tw.ConditionalHeadTwist(lm, observed_length=2, **options),
    "class, body": lambda lm, **options: tw.ConditionalBodyTwist(lm, num_classes=3, **options),
    "tokens, body": lambda lm, **options: tw.ConditionalBodyTwist(lm, observed_length=2, **options),
}
OBSERVED = {"class": [0, 2], "tokens": [[5, 9], [11, 4]]}


def observations(name):
    """Two observations that a conditional form of this name takes."""
    return OBSERVED[name.split(",")[0]]


def stir(twist, *, seed=0, head=0.2, others=0.05):
    """Move every parameter by normal noise, as if the twist had learnt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in twist.named_parameters():
            scale = head if name.startswith(("head", "log_tables")) else others
            # Layers of a tied head divide by the number of their inputs.
            scale *= 5 if name == "head.last.weight" else 1
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter)
    return twist


def random_texts(lm, *, rows=5, length=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lm.vocab_size, (rows, length), generator=generator)


def stepped(twist, lm, tokens, prompt_length):
    """log_psi_next of each step, by prefill and advance."""
    lm_step = lm.prefill(tokens[:, :prompt_length])
    step = twist.prefill(tokens[:, :prompt_length], lm_step)
    answers = [step.log_psi_next]
    for t in range(prompt_length, tokens.shape[1] - 1):
        lm_step = lm.advance(tokens[:, t], lm_step.carry)
        step = twist.advance(tokens[:, t], step.carry, lm_step)
        answers.append(step.log_psi_next)
    return torch.stack(answers, dim=1)


def base_values(lm):
    return [value.clone() for value in lm.model.state_dict().values()]
