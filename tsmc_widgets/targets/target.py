"""The target sigma(s) = p0(s | s_0) phi(s) / Z over T tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsIndex, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tsmc_widgets.errors import (
    ContextLengthError,
    UnknownTokenError,
    UnsupportedModelError,
    check_integer,
    check_number,
    check_one_of,
    quoted,
    whole_number,
)
from tsmc_widgets.models.protocol import (
    LanguageModel,
    LMStep,
    TeacherForced,
    by_rows,
    check_model,
    optional,
    readable,
)
from tsmc_widgets.targets.checked import as_ids, log_phi_checked, log_phi_next_checked
from tsmc_widgets.targets.context import Context, SupportsLogPhi
from tsmc_widgets.targets.ending import Ending, Stop, ending_of
from tsmc_widgets.targets.exact_samples import (
    DEFAULT_BUDGET,
    ExactSamples,
    JointSamples,
    joint_samples,
    rejection_samples,
)
from tsmc_widgets.targets.protocol import Potential, as_potential

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Tensor | np.ndarray
"""Text, token ids, or chat messages such as ``[{"role": "user", "content": "Hello"}]``."""
Answer = TypeVar("Answer", LMStep, TeacherForced)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Target:
    """The distribution p0(s | prompt) phi(s) / Z over the next ``num_steps`` tokens.

    Args:
        lm: the base model p0.
        potential: phi; any object with a ``log_phi(tokens)`` method.
        prompt: s_0 as text, as token ids, or as chat messages for the model's chat template.
        num_steps: T.
        eos: "ignore" for texts of exactly T tokens, as in the paper; "absorb" for texts that end
            at the model's EOS tokens, of which the first then repeats up to step T at no cost.
        stop: where texts end besides EOS: a text or several, also across the borders of tokens, or
            a function of one token's text that is true of tokens that end. Only what is generated
            is looked at; the token in which a stop is complete is part of the text. It needs
            eos="absorb".
        power: alpha, a positive number: the target is p0(s)**alpha phi(s) / Z, and intermediate
            targets are p0(s_{1:t})**alpha psi_t. Whatever is called log p0 of a run, a sequence or
            a token is then alpha log p0, and q = p0 is proportional to p0**alpha at each token.

    Attributes:
        potential: phi, bound to this target.
        prompt_tokens: s_0 as the model reads it.
        absorbs_eos: whether a text ends at EOS.
        eos_token_id: the model's (first) EOS token; None where it has none.
        context: what the potential was told of this target.
        ending: where texts end before T; None where they do not.
    """

    lm: LanguageModel
    potential: Potential
    prompt_tokens: Int[Tensor, " length"]
    num_steps: int
    absorbs_eos: bool
    eos_token_id: int | None
    stop: Stop
    power: float | int
    context: Context

    def __init__(
        self,
        lm: LanguageModel,
        potential: SupportsLogPhi,
        *,
        prompt: Prompt,
        num_steps: int,
        eos: Literal["ignore", "absorb"] = "ignore",
        stop: Stop = None,
        power: float | int = 1,
    ) -> None:
        check_model(lm)
        check_integer("num_steps", num_steps)
        check_one_of("eos", eos, ("ignore", "absorb"))
        if eos == "absorb" and lm.eos_token_id is None:
            raise ValueError(
                "eos='absorb' needs a model with an EOS token, and this one has none: "
                "use eos='ignore' for texts of exactly num_steps tokens."
            )
        if eos == "ignore" and stop is not None:
            raise ValueError(
                f"stop={quoted(stop)} says where texts end besides EOS: give eos='absorb'."
            )
        check_number("power", power, "(0, inf)")
        phi = as_potential(potential)
        if power != 1 and phi.is_conditional:
            raise ValueError(
                f"power={power!r} needs a potential that waits for no observation, as s and o of "
                f"p0 are no samples of p0**power: condition {phi.describe()} first."
            )
        tokens = prompt_ids(lm, prompt)
        _check_length(lm, len(tokens), num_steps)
        absorbs = eos == "absorb"
        ending = ending_of(lm, stop) if absorbs else None
        context = Context(lm, tokens, int(num_steps), ending)
        for name, value in [
            ("lm", lm),
            ("potential", phi.bind(context)),
            ("prompt_tokens", tokens),
            ("num_steps", int(num_steps)),
            ("absorbs_eos", absorbs),
            ("eos_token_id", lm.eos_token_id),
            ("stop", stop),
            ("power", power),
            ("context", context),
        ]:
            object.__setattr__(self, name, value)

    @property
    def ending(self) -> Ending | None:
        """Where texts end before T."""
        return self.context.ending

    def over(self, tokens: Int[Tensor, "batch t"]) -> Bool[Tensor, "batch t"]:
        """Positions from the token on that ends a text before T."""
        none = torch.zeros_like(tokens, dtype=torch.bool)
        return none if self.ending is None else self.ending.over(tokens)

    def whole(self, ended: Int[Tensor, "batch t"]) -> Int[Tensor, "batch steps"]:
        """Texts that have ended with their last token, or before it, filled up with EOS to T."""
        left = self.num_steps - ended.shape[1]
        return torch.nn.functional.pad(ended, (0, left), value=self.eos_token_id or 0)

    def after_prompt(self, tokens: Int[Tensor, "batch t"]) -> Int[Tensor, "batch length"]:
        """The prompt followed by each row of generated tokens."""
        prompt = self.prompt_tokens.to(tokens.device).expand(len(tokens), -1)
        return torch.cat([prompt, tokens], dim=1)

    def measured(self, answer: Answer) -> Answer:
        """A model's answer with alpha log p0 in place of log p0, which is not normalised."""
        if self.power == 1:
            return answer
        powered = by_rows(lambda log_probs: self.power * log_probs, answer.log_probs)
        return replace(answer, log_probs=powered)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """Log phi(s) in nats, once for each distinct row, refused if NaN or +inf.

        Raises:
            PotentialError: the potential raised or misbehaved; says on which text.
        """
        self._check_tokens(tokens, self.num_steps)
        if not len(tokens):
            return torch.zeros(0, dtype=torch.float64, device=tokens.device)
        distinct, rows = torch.unique(tokens, dim=0, return_inverse=True)
        values = log_phi_checked(
            self.potential.log_phi,
            distinct,
            name=self.potential.describe(),
            show_row=self.context.show_row,
        )
        return values[rows]

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """Log phi of rows of T-1 tokens with each of the V last ones; None if phi offers none."""
        return None if self.potential.log_phi_next is None else self._log_phi_next

    def log_p(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """Alpha log p0(s | prompt) in nats, teacher-forced; after an end only EOS follows."""
        self._check_tokens(tokens, self.num_steps)
        log_p = self.context.log_p(tokens)
        return log_p if self.power == 1 else self.power * log_p

    def log_sigma_tilde(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """Alpha log p0(s | prompt) + log phi(s), in nats: sigma without its constant."""
        return self.log_p(tokens) + self.log_phi(tokens)

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"] | None
    ) -> Float64[Tensor, " batch"]:
        """Log phi of each row under its own observation o if there are any, in nats, checked."""
        if observed is None:
            return self.log_phi(tokens)
        self._check_tokens(tokens, self.num_steps)
        return log_phi_checked(
            lambda rows: self.potential.log_phi_given(rows, observed),
            tokens,
            name=self.potential.describe(),
            show_row=self.context.show_row,
        )

    def condition(self, observed: Any) -> Target:
        """The target for one observation o, where the potential waits for one."""
        return self.with_potential(self.potential.condition(observed))

    def with_potential(self, potential: SupportsLogPhi) -> Target:
        """The target with another phi."""
        return self.with_(potential=potential)

    def with_(self, **changes: Any) -> Target:
        """The target with some of ``Target``'s arguments changed."""
        names = ("lm", "potential", "num_steps", "stop", "power")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        own |= {"prompt": self.prompt_tokens, "eos": "absorb" if self.absorbs_eos else "ignore"}
        return Target(**own | changes)

    @property
    def rules(self) -> dict[str, Any]:
        """What EOS does, and stop and power where they are given, in JSON's types."""
        stop = self.stop.__name__ if callable(self.stop) else self.stop
        rules: dict[str, Any] = {"eos": "absorb" if self.absorbs_eos else "ignore"}
        rules |= {} if stop is None else {"stop": [stop] if isinstance(stop, str) else list(stop)}
        return rules if self.power == 1 else rules | {"power": self.power}

    @property
    def is_conditional(self) -> bool:
        """Whether the potential waits for an observation o."""
        return self.potential.is_conditional

    def exact_samples(
        self, n: int, *, seed: SupportsIndex, budget: int = DEFAULT_BUDGET, progress: bool = True
    ) -> ExactSamples | JointSamples:
        """Exact samples of sigma: by joint draw where phi waits for o, else by rejection from p0.

        Args:
            n: how many.
            seed: an integer of at least 0; the same seed gives the same samples.
            budget: draws from p0 at most; by joint draw every one of them is a sample.
            progress: whether to show a progress bar.

        Raises:
            PotentialError: neither way is open; says why.
            BudgetError: too few were found within the budget; ``.samples`` holds those.
        """
        if self.is_conditional:
            return joint_samples(self, n, seed=seed, budget=budget, progress=progress)
        return rejection_samples(self, n, seed=seed, budget=budget, progress=progress)

    def texts(self, tokens: Int[Tensor, "batch steps"]) -> list[str]:
        """The generated part of each text, special tokens left out."""
        return self.context.texts(tokens)

    def labels(self, tokens: Int[Tensor, "batch steps"]) -> list[str]:
        """``texts``, or ids such as ``#12 #7`` where the model has no tokenizer."""
        return self.context.labels(tokens)

    def full_texts(self, tokens: Int[Tensor, "batch steps"]) -> list[str]:
        """Prompt and generated part as one text each, special tokens left out."""
        return self.context.full_texts(tokens)

    def describe(self) -> str:
        """The target in a line for people."""
        prompt = readable(self.lm, self.prompt_tokens.unsqueeze(0))[0]
        ends = " or up to EOS" if self.absorbs_eos else ""
        ends += " or a stop" if self.stop is not None else ""
        phi = self.potential.describe()
        what = phi if self.power == 1 else f"p₀^{self.power:g} × {phi}"
        return f'{what}, {self.num_steps} tokens{ends} after "{prompt}"'

    def __repr__(self) -> str:
        return f"<Target: {self.describe()}>"

    def _log_phi_next(
        self, prefixes: Int[Tensor, "batch shorter"]
    ) -> Float64[Tensor, "batch vocab"]:
        self._check_tokens(prefixes, self.num_steps - 1)
        return log_phi_next_checked(
            self.potential.log_phi_next,
            prefixes,
            self.lm.vocab_size,
            name=self.potential.describe(),
            show_row=self.context.show_row,
        )

    def _check_tokens(self, tokens: Tensor, steps: int) -> None:
        if tokens.shape[1] != steps:
            raise ValueError(
                f"tokens must have shape (rows, {steps}), without the prompt; "
                f"got {tuple(tokens.shape)}."
            )


def check_target(target: Any) -> None:
    """Raise TypeError unless it is a ``Target``."""
    if not isinstance(target, Target):
        raise TypeError(
            "target must be a Target, as tw.Target(lm, potential, prompt=..., num_steps=...) or "
            f"tw.load_problem(name).target() gives; got {quoted(target)}."
        )


def require_unconditional(target: Target, remedy: str) -> None:
    """Raise ValueError if the potential waits for an observation; ``remedy`` says what to do."""
    check_target(target)
    if target.is_conditional:
        raise ValueError(f"{target.potential.describe()} waits for an observation: {remedy}")


def prompt_ids(lm: LanguageModel, prompt: Prompt) -> Int[Tensor, " length"]:
    """Token ids of a prompt given as text, token ids or chat messages."""
    if isinstance(prompt, np.ndarray) and prompt.dtype.kind in "iu":
        prompt = torch.tensor(prompt.astype(np.int64))
    if isinstance(prompt, str):
        ids = list((optional(lm, "encode_prompt") or lm.encode)(prompt))
    elif isinstance(prompt, Tensor | np.ndarray):
        ids = as_ids("prompt", prompt, ndim=1).tolist()
    elif is_chat(prompt):
        ids = _chat_ids(lm, prompt)
    elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview):
        ids = list(prompt)
    else:
        raise TypeError(
            "prompt must be text, a list, tensor or array of token ids, or a list of chat "
            f"messages; got {type(prompt).__name__}."
            + (" Decode it to text first." if isinstance(prompt, bytes | bytearray) else "")
        )
    for token in ids:
        if whole_number(token) is None:
            raise TypeError(f"prompt must hold integer token ids; got {quoted(token)} among them.")
        if not 0 <= token < lm.vocab_size:
            raise UnknownTokenError(
                f"Token id {token} of the prompt is not in the vocabulary: ids are 0 to "
                f"{lm.vocab_size - 1}."
            )
    if not ids and not optional(lm, "allows_empty_prompt"):
        raise ValueError(
            "The prompt is empty, and this model must read at least one token before it can "
            "predict: give a prompt, such as a first word or the model's BOS token."
        )
    return torch.tensor(ids, dtype=torch.int64, device=lm.device)


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is messages of a chat, and neither text nor token ids."""
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)


def _chat_ids(lm: LanguageModel, messages: Sequence[Any]) -> list[int]:
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(
                "Each chat message must be a dictionary with 'role' and 'content'; "
                f"got {quoted(message)}."
            )
    template = optional(lm, "apply_chat_template")
    if template is None:
        raise UnsupportedModelError(
            "This model has no chat template, so it cannot read chat messages: give the prompt as "
            "text."
        )
    return list(template([dict(message) for message in messages]))


def _check_length(lm: LanguageModel, prompt_length: int, num_steps: int) -> None:
    limit = lm.context_length
    if limit is not None and prompt_length + num_steps > limit:
        raise ContextLengthError(
            f"The prompt's {prompt_length} tokens and num_steps={num_steps} make "
            f"{prompt_length + num_steps}, and this model's context holds {limit}: shorten the "
            "prompt or take fewer steps."
        )
