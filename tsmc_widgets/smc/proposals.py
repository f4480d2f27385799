"""Proposals q: where the next token is drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_kind, quoted, set_integers
from tsmc_widgets.models.protocol import (
    Carry,
    LanguageModel,
    LMStep,
    Table,
    by_rows,
    check_model,
)
from tsmc_widgets.targets.checked import as_ids
from tsmc_widgets.twists.protocol import TwistStep, as_twist, of_other, prefill_twist


@dataclass(frozen=True, slots=True)
class ProposalStep:
    """A proposal's answer for a batch of prefixes.

    Attributes:
        log_q_next: log q(. | prefix), normalised.
        carry: goes into the next ``advance``; None where the proposal keeps nothing.
    """

    log_q_next: Table
    carry: Carry | None


@runtime_checkable
class Proposal(Protocol):
    """A proposal steps along with the base model and the sampler's twist.

    ``testing.check_proposal`` checks the contract. One with a true ``is_conditional`` is given what
    is observed with each row as a fourth argument of ``prefill``, and keeps it in its carry.
    """

    def prefill(
        self, tokens: Int[Tensor, "batch length"], lm_step: LMStep, twist_step: TwistStep | None
    ) -> ProposalStep:
        """Read the prompts, and whatever has been generated after them."""
        ...

    def advance(
        self,
        tokens: Int[Tensor, " batch"],
        carry: Carry | None,
        lm_step: LMStep,
        twist_step: TwistStep | None,
    ) -> ProposalStep:
        """Read one more token for each row; ``carry`` stays valid and unchanged."""
        ...

    def describe(self) -> str:
        """The proposal in a few words."""
        ...


class BaseProposal:
    """What the package reads of a proposal besides ``Proposal``'s methods, with defaults.

    Proposals of the package are subclasses; any other object with those methods is adapted by
    ``as_proposal`` wherever the package takes a proposal.

    Attributes:
        twist: a twist of its own, by which it weighs p0; None where it has none.
        follows_twist: whether q is made of the sampler's own twist.
        is_conditional: whether ``prefill`` takes each row's observation as a fourth argument.
    """

    __slots__ = ()
    twist: Any = None
    follows_twist: bool = False
    is_conditional: bool = False

    @property
    def proposal_only(self) -> bool:
        """Whether its own twist can only propose, so that nothing is to be resampled."""
        return self.twist is not None and self.twist.proposal_only


@dataclass(frozen=True, slots=True)
class Base(BaseProposal):
    """q = p0: particles are drawn from the base model and weighted afterwards."""

    def prefill(
        self, tokens: Int[Tensor, "batch length"], lm_step: LMStep, twist_step: TwistStep | None
    ) -> ProposalStep:
        """Pass on p0."""
        return ProposalStep(lm_step.log_probs, None)

    def advance(
        self,
        tokens: Int[Tensor, " batch"],
        carry: Carry | None,
        lm_step: LMStep,
        twist_step: TwistStep | None,
    ) -> ProposalStep:
        """Pass on p0."""
        return ProposalStep(lm_step.log_probs, None)

    def describe(self) -> str:
        """The proposal in a few words."""
        return "base model"


@dataclass(frozen=True, slots=True)
class TwistInduced(BaseProposal):
    """q proportional to p0 psi_t, over the whole vocabulary (paper, eq. 15: one forward pass).

    Attributes:
        twist: the twist to follow; None follows the sampler's own, which costs nothing more.
    """

    twist: Any = None

    def __post_init__(self) -> None:
        """Adapt the twist."""
        object.__setattr__(self, "twist", as_twist(self.twist))

    @property
    def follows_twist(self) -> bool:
        """Whether q is made of the sampler's own twist."""
        return self.twist is None

    @property
    def is_conditional(self) -> bool:
        """Whether the twist of its own depends on an observation that is yet to be given."""
        return self.twist is not None and self.twist.is_conditional

    def prefill(
        self,
        tokens: Int[Tensor, "batch length"],
        lm_step: LMStep,
        twist_step: TwistStep | None,
        observed: Int[Tensor, "batch width"] | None = None,
    ) -> ProposalStep:
        """Weigh p0 by the twist, each row under its own observation if the twist wants one."""
        if self.twist is not None:
            twist_step = prefill_twist(self.twist, tokens, lm_step, observed)
        return self._propose(lm_step, twist_step)

    def advance(
        self,
        tokens: Int[Tensor, " batch"],
        carry: Carry | None,
        lm_step: LMStep,
        twist_step: TwistStep | None,
    ) -> ProposalStep:
        """Weigh p0 by the twist."""
        if self.twist is not None:
            twist_step = self.twist.advance(tokens, carry, lm_step)
        return self._propose(lm_step, twist_step)

    def _propose(self, lm_step: LMStep, twist_step: TwistStep | None) -> ProposalStep:
        if twist_step is None:
            return ProposalStep(lm_step.log_probs, None)
        log_p, log_psi = lm_step.log_probs, twist_step.log_psi_next
        log_q = by_rows(tilt, log_p, log_psi, width=log_p.shape[1])
        return ProposalStep(log_q, twist_step.carry if self.twist is not None else None)

    def describe(self) -> str:
        """The proposal in a few words."""
        return "twist-induced" if self.twist is None else "induced by another twist"


@dataclass(frozen=True, slots=True)
class ModelProposal(BaseProposal):
    """q = another language model over the same vocabulary.

    Attributes:
        lm: the model to draw from.
        prompt_tokens: what it reads in place of the target's prompt; None reads the same.
        prompt_length: tokens of the target's prompt, in whose place ``prompt_tokens`` stand.
    """

    lm: LanguageModel
    prompt_tokens: Int[Tensor, " length"] | None = None
    prompt_length: int | None = None

    def __post_init__(self) -> None:
        """Check that a prompt of its own comes with the length of what it replaces."""
        check_model(self.lm)
        if self.prompt_tokens is not None:
            ids = as_ids("prompt_tokens", self.prompt_tokens, ndim=1)
            object.__setattr__(self, "prompt_tokens", ids)
        if (self.prompt_tokens is None) != (self.prompt_length is None):
            raise ValueError(
                "prompt_tokens and prompt_length go together: give both, prompt_length being the "
                "number of tokens of the target's prompt that prompt_tokens replace, or neither; "
                f"got prompt_length={quoted(self.prompt_length)}."
            )
        if self.prompt_length is not None:
            set_integers(self, prompt_length=0)

    def prefill(
        self, tokens: Int[Tensor, "batch length"], lm_step: LMStep, twist_step: TwistStep | None
    ) -> ProposalStep:
        """Read the prompts, and whatever has been generated after them, with the other model."""
        if self.lm.vocab_size != lm_step.log_probs.shape[-1]:
            raise ValueError(
                f"the proposal's model has {self.lm.vocab_size} tokens and the base model "
                f"{lm_step.log_probs.shape[-1]}: a proposal must share the base model's vocabulary."
            )
        if self.prompt_tokens is not None:
            prompt = self.prompt_tokens.to(tokens).unsqueeze(0).expand(tokens.shape[0], -1)
            tokens = torch.cat([prompt, tokens[:, self.prompt_length :]], dim=1)
        return self._propose(self.lm.prefill(tokens), lm_step)

    def advance(
        self,
        tokens: Int[Tensor, " batch"],
        carry: Carry | None,
        lm_step: LMStep,
        twist_step: TwistStep | None,
    ) -> ProposalStep:
        """Read one more token with the other model."""
        return self._propose(self.lm.advance(tokens, carry), lm_step)

    def _propose(self, step: LMStep, lm_step: LMStep) -> ProposalStep:
        return ProposalStep(step.log_probs.to(lm_step.log_probs), step.carry)

    def describe(self) -> str:
        """The proposal in a few words."""
        return f"another model ({type(self.lm).__name__})"


@dataclass(frozen=True)
class AdaptedProposal(BaseProposal):
    """A user's proposal, with ``BaseProposal``'s defaults for what it does not have."""

    inner: Any

    _own, _says_follows, is_conditional = of_other(
        "inner", "twist", "follows_twist", "is_conditional", base=BaseProposal
    )

    @property
    def twist(self) -> Any:
        """The user's own ``twist``, if it has one."""
        return as_twist(self._own)

    @property
    def follows_twist(self) -> bool:
        """Whether it says so and has no twist of its own."""
        return self.twist is None and self._says_follows

    def __getattr__(self, name: str) -> Any:
        """Methods of the user's proposal."""
        if name == "inner":  # Not set yet, as while a pickle is read.
            raise AttributeError(name)
        return getattr(self.inner, name)


def as_proposal(proposal: Any) -> Any:
    """The proposal with all attributes of ``BaseProposal``; None is the base model."""
    if proposal is None:
        return Base()
    if isinstance(proposal, BaseProposal):
        return proposal
    wanted = "Base(), TwistInduced(twist) or ModelProposal(lm)"
    check_kind("proposal", proposal, ("prefill", "advance", "describe"), wanted)
    return AdaptedProposal(proposal)


def following(twist: Any) -> dict[str, Any]:
    """Arguments of runs that follow a twist: one that can only propose is the proposal's alone."""
    twist = as_twist(twist)
    if twist.proposal_only:
        return {"proposal": TwistInduced(twist)}
    return {"proposal": TwistInduced(), "twist": twist}


def tilt(
    log_probs: Float[Tensor, "batch vocab"], log_psi_next: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """Log of p0 psi, normalised; p0 itself on rows that psi forbids whole."""
    # A large log psi leaves few digits to a rounded sum: its scale goes while all digits are there.
    highest = log_psi_next.amax(-1, keepdim=True).clamp(min=torch.finfo(log_psi_next.dtype).min)
    joint = (log_psi_next - highest).to(log_probs.dtype).add_(log_probs)
    # Not log_softmax, whose float32 sum is 1e-6 nats off a row at 50,000 tokens.
    log_total = torch.logsumexp(joint, dim=-1, keepdim=True)
    return torch.where(log_total == -math.inf, log_probs, joint - log_total)
