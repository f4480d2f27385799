"""Twists that learn: their base classes, and tables over all prefixes of tiny vocabularies."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.errors import BudgetError, check_integer, check_kind, check_one_of, quoted
from tsmc_widgets.models.protocol import (
    Carry,
    LanguageModel,
    LMStep,
    TeacherForced,
    by_rows,
    check_model,
)
from tsmc_widgets.models.tabular import TabularCarry
from tsmc_widgets.twists.protocol import OnePassTwist, SteppedTwist, TwistStep

LINKS = ("log", "sigmoid")
PROPOSAL_ONLY = ("dpg", "ppo")
"""Methods that leave log psi free up to a function of the prefix."""


class TrainableModule(OnePassTwist, nn.Module):
    """A twist that learns; subclasses step it and give ``log_psi_next``.

    Attributes:
        lm: the base model; no part of the module tree, so that the state_dict is the twist's own.
        link: "log" or "sigmoid".
        method: who trained it; None if untrained.
        options: keyword arguments that make another of the same form.
        card: contents of ``twist.json`` where the twist was loaded; else None.
        level: log psi before anything was learned, in nats; 0, or log 1/2 for the sigmoid.
        log_bound: log of what psi stays below, in nats, for the sigmoid link.
    """

    lm: Any
    constants: Tensor

    def __init__(
        self, lm: LanguageModel, link: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Take the base model, how raw values become log psi, and the form's other options."""
        super().__init__()
        check_model(lm)
        check_one_of("link", link, LINKS)
        object.__setattr__(self, "lm", lm)
        self.link = link
        self.method: str | None = None
        self.options = {**(options or {}), "link": link}
        self.card: dict[str, Any] | None = None
        # In float64 and no part of any bias, as float32 near 1e4 resolves 1e-3 nats.
        usual = torch.tensor([0.0 if link == "log" else -math.log(2.0), 0.0], dtype=torch.float64)
        self.register_buffer("constants", usual.to(lm.device))

    def card_options(self) -> dict[str, Any]:
        """The options in JSON's types, for a file.

        Raises:
            ValueError: one of them is an object that JSON cannot hold.
        """
        return self.options

    def __repr__(self) -> str:
        """Form, options that were given, size, and who trained it."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        learning = [each for each in self.parameters() if each.requires_grad]
        count, size = (sum(map(f, learning)) for f in (Tensor.numel, lambda each: each.nbytes))
        by = f", trained by {self.method}" if self.method else ""
        return f"{type(self).__name__}({given}): {count:,} parameters, {size / 1e6:.2g} MB{by}"

    @property
    def level(self) -> float:
        """Log psi before anything was learned."""
        return float(self.constants[0])

    @property
    def log_bound(self) -> float:
        """Log of what psi stays below, for the sigmoid link."""
        return float(self.constants[1])

    @property
    def proposal_only(self) -> bool:
        """Whether psi is known only up to a function of the prefix, so that it cannot weigh."""
        return self.method in PROPOSAL_ONLY

    def _linked(self, raw: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        level, bound = self.constants.tolist()
        if self.link == "log":
            return raw.double() + level if level else raw
        below = level - bound
        if below == -math.log(2.0):
            logit, raw = 0.0, raw.double() if bound else raw
        else:
            logit, raw = below - math.log(-math.expm1(below)), raw.double()
        return nn.functional.logsigmoid(raw + logit) + bound

    @property
    def is_fresh(self) -> bool:
        """Whether raw values are 0 at every prefix."""
        return not any(bool(parameter.any()) for parameter in self._last_layer())

    def start_at(self, log_psi: float, log_bound: float = 0.0) -> None:
        """Set psi of a twist that has learned nothing to another constant: q stays p0.

        A loss that determines the scale of psi, and not only its proportions, would otherwise
        first move psi at the prefixes that it sees, relative to all others, and have gradients of
        phi's scale, which Adam's eps may swallow.

        Args:
            log_psi: the constant in nats; below ``log_bound`` for the sigmoid link.
            log_bound: of the sigmoid link, in nats.
        """
        if self.link == "sigmoid" and log_psi >= log_bound:
            raise ValueError(
                f"the sigmoid link has psi < {math.exp(log_bound):.4g}: log_psi must be < "
                f"{quoted(log_bound)}; got {quoted(log_psi)}."
            )
        self.constants.copy_(torch.tensor([log_psi, log_bound], dtype=torch.float64))

    def _last_layer(self) -> list[Tensor]:
        """Parameters that are zero where raw values are."""
        raise NotImplementedError

    def _check_unconditional(self, observed: Tensor | None) -> None:
        if observed is not None:
            raise ValueError(
                f"{type(self).__name__} does not depend on an observation, and observed was given: "
                "leave it out, or use a conditional form such as ConditionalHeadTwist."
            )

    def _shared(self) -> Iterable[Any]:
        """What copies of the twist have in common with it."""
        return [self.lm]

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainableModule:
        """Copy of the twist on the same base model."""
        memo.update({id(each): each for each in self._shared()})
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone


class BaseStates:
    """The base model's hidden states, which are there anyway: nothing is carried or trained."""

    def __init__(self, lm: LanguageModel) -> None:
        """Ask the model for one state, to learn its width."""
        self.lm = lm
        self.width = hidden_width(lm)

    def prefill(self, tokens: Tensor, lm_step: LMStep) -> tuple[Tensor, None]:
        """The state after the prompts."""
        return lm_step.hidden, None

    def advance(self, tokens: Tensor, carry: Carry | None, lm_step: LMStep) -> tuple[Tensor, None]:
        """The state after one more token."""
        return lm_step.hidden, None

    @torch.no_grad()
    def teacher_force(
        self, tokens: Tensor, prompt_length: int, base: TeacherForced | None
    ) -> Float[Tensor, "batch steps width"]:
        """The states of ``base``, or of a pass of their own."""
        if base is None:
            base = self.lm.teacher_force(tokens, prompt_length)
        return base.hidden.detach()


@dataclass(frozen=True, slots=True)
class CodesCarry:
    """Codes of the rows' observations, and the carry of the hidden states."""

    code: Float[Tensor, "batch code"]
    states: Any

    def select(self, rows: Int[Tensor, " picked"]) -> CodesCarry:
        """Carry of the given rows."""
        states = None if self.states is None else self.states.select(rows)
        return CodesCarry(self.code[rows], states)

    def reserve(self, rows: int, tokens: int) -> CodesCarry:
        """Carry whose successors make room for as many rows and tokens."""
        if self.states is None:
            return self
        return CodesCarry(self.code, self.states.reserve(rows, tokens))

    def most_bytes(self, rows: int, tokens: int) -> float | int:
        """Memory that as many rows and tokens take at most."""
        return 0.0 if self.states is None else self.states.most_bytes(rows, tokens)


class NeuralTwist(TrainableModule):
    """Log psi_t(s_{<t}, .) = head(state that predicts token t); starts at psi = 1.

    The head of a conditional form also reads the code that ``encoder`` makes of each row's o.
    """

    _states: Any

    def __init__(
        self,
        lm: LanguageModel,
        states: BaseStates,
        head: nn.Module,
        link: str,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(lm, link, options)
        object.__setattr__(self, "_states", states)
        self.head = head

    @torch.no_grad()
    def prefill(
        self,
        tokens: Int[Tensor, "batch length"],
        lm_step: LMStep,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> TwistStep:
        """Read the prompts and whatever has been generated after them.

        Raises:
            ValueError: a conditional form without an observation for each row, or another with.
        """
        code = self._encode(
            observed,
            "condition(observed) gives a twist that steps, and observed, one for each row, "
            "makes this one step (observed= of run_smc, one for each run)",
        )
        hidden, carry = self._states.prefill(tokens, lm_step)
        return self._answer(hidden, code, carry)

    @torch.no_grad()
    def advance(
        self, tokens: Int[Tensor, " batch"], carry: Carry | None, lm_step: LMStep
    ) -> TwistStep:
        """Read one more token for each row; ``carry`` stays valid and unchanged."""
        code = None
        if self.is_conditional:
            if not isinstance(carry, CodesCarry):
                raise self._unconditioned("start with prefill(tokens, lm_step, observed)")
            code, carry = carry.code, carry.states
        hidden, carry = self._states.advance(tokens, carry, lm_step)
        return self._answer(hidden, code, carry)

    def log_psi_next(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        base: TeacherForced | None = None,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch steps vocab"]:
        """Log psi_t(s_{<t}, .) for t = 1..T in one pass, with gradients to the twist alone.

        ``observed``, for conditional forms: class indices (batch,) or (batch, 1), or token ids
        (batch, c). The rest as in ``TrainableTwist``.
        """
        code = self._encode(observed, "give observed, one for each row")
        states = self._states.teacher_force(tokens, prompt_length, base)
        return self.value_given(states, None if code is None else code.unsqueeze(1))

    def _encode(self, observed: Tensor | None, remedy: str) -> Float[Tensor, "batch code"] | None:
        """Codes of the rows' observations; None for forms that depend on none."""
        if not self.is_conditional:
            self._check_unconditional(observed)
            return None
        if observed is None:
            raise self._unconditioned(remedy)
        return self.encoder.encode(observed)

    def _unconditioned(self, remedy: str) -> ValueError:
        return ValueError(f"{type(self).__name__} depends on an observation: {remedy}.")

    def _answer(self, hidden: Tensor, code: Tensor | None, carry: Carry | None) -> TwistStep:
        width = self.lm.vocab_size
        if code is None:
            value = by_rows(lambda rows: self.value_given(rows, None), hidden, width=width)
            return TwistStep(value, carry)
        return TwistStep(
            by_rows(self.value_given, hidden, code, width=width), CodesCarry(code, carry)
        )

    def _last_layer(self) -> list[Tensor]:
        last: Any = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
        return [last.bias, last.weight]

    def value_given(
        self, states: Float[Tensor, "*rows width"], code: Float[Tensor, "... code"] | None
    ) -> Float[Tensor, "*rows vocab"]:
        """Log psi of states under codes, which broadcast over them, or under none."""
        if code is not None:
            code = code.to(states.dtype).expand(*states.shape[:-1], -1)
            states = torch.cat([states, code], dim=-1)
        return self._linked(self.head(states.to(next(self.head.parameters()).dtype)))


def hidden_width(lm: LanguageModel) -> int:
    """Width of the model's hidden state; raises ValueError where it has none."""
    check_model(lm)
    probe = lm.prefill(torch.zeros(1, 1, dtype=torch.int64, device=lm.device)).hidden
    if probe is None:
        raise ValueError(
            f"{type(lm).__name__} has no hidden state for a head to read: use TableTwist, "
            "TableHeadTwist (which learns) or the optimal twist of tw.exact(target)."
        )
    return probe.shape[1]


def linear_head(lm: LanguageModel, inputs: int) -> nn.Linear:
    """One layer from states to the vocabulary, in float32 and at zero."""
    head = nn.Linear(inputs, lm.vocab_size, device=lm.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def mlp_head(
    lm: LanguageModel, inputs: int, *, width: int | None, depth: int, seed: int
) -> nn.Sequential:
    """``depth`` layers of ReLU and a last layer at zero, in float32.

    Args:
        lm: says the vocabulary and the device.
        inputs: width of what the head reads.
        width: of the layers between; None is ``inputs``.
        depth: number of layers between; the paper has 2.
        seed: of the first values of the layers between.
    """
    check_integer("depth", depth)
    width = inputs if width is None else width
    check_integer("width", width)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, at_least=0))
    layers: list[nn.Module] = []
    for at in range(depth):
        layer = nn.Linear(width if at else inputs, width, dtype=torch.float32)
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer.to(lm.device), nn.ReLU()]
    return nn.Sequential(*layers, linear_head(lm, width))


_MOST_ENTRIES = 2**24


class _PrefixTables(SteppedTwist):
    """Log psi of every prefix; ``log_tables[t - 1]`` has shape (V**(t-1), V)."""

    vocab_size: int
    log_tables: Sequence[Tensor] | nn.ParameterList

    def _start(self, tokens: Int[Tensor, "batch length"]) -> TabularCarry:
        return TabularCarry(tokens.new_zeros(tokens.shape[0]), 0)

    def _read(self, tokens: Int[Tensor, " batch"], carry: TabularCarry) -> TabularCarry:
        return TabularCarry(carry.index * self.vocab_size + tokens, carry.length + 1)

    def _value(self, carry: TabularCarry) -> Float[Tensor, "batch vocab"]:
        if carry.length >= len(self.log_tables):
            raise ValueError(
                f"this twist has tables for {len(self.log_tables)} steps and step "
                f"{carry.length + 1} is asked for: make it for the num_steps of the target."
            )
        table = self.log_tables[carry.length]
        return table[carry.index.to(table.device)]


class TableTwist(_PrefixTables):
    """Log psi_t of every prefix: ``log_tables[t - 1]`` has t axes of size V."""

    def __init__(
        self, log_tables: Sequence[Float[Tensor, " ..."]], *, prompt_length: int = 0
    ) -> None:
        """Take the tables.

        Args:
            log_tables: log psi_1, log psi_2, ... in nats; -inf is allowed, NaN and +inf are not.
            prompt_length: tokens of the prompt, which the tables leave out.
        """
        check_integer("prompt_length", prompt_length, at_least=0)
        if not isinstance(log_tables, list | tuple):
            raise TypeError(f"log_tables must be a list of tensors; got {quoted(log_tables)}.")
        for t, table in enumerate(log_tables, start=1):
            check_kind(f"log_tables[{t - 1}]", table, Tensor, "a tensor of log psi, in nats")
            if table.ndim != t or len(set(table.shape)) != 1:
                raise ValueError(
                    f"log_tables[{t - 1}] must have {t} axes of one size V; got shape "
                    f"{tuple(table.shape)}."
                )
            if bool((torch.isnan(table) | (table == torch.inf)).any()):
                raise ValueError(
                    f"log_tables[{t - 1}] holds NaN or +inf: log psi must be below +inf."
                )
        if not log_tables:
            raise ValueError("log_tables must hold at least log psi_1; got none.")
        self.vocab_size = log_tables[0].shape[0]
        self.prompt_length = prompt_length
        self.log_tables = [table.double().reshape(-1, self.vocab_size) for table in log_tables]

    @classmethod
    def random(
        cls,
        vocab_size: int,
        num_steps: int,
        *,
        seed: int,
        scale: float = 1.0,
        prompt_length: int = 0,
    ) -> TableTwist:
        """Normal log psi with standard deviation ``scale``, unrelated to any phi."""
        generator = torch.Generator().manual_seed(seed)
        tables = [
            scale * torch.randn(*(vocab_size,) * t, generator=generator, dtype=torch.float64)
            for t in range(1, num_steps + 1)
        ]
        return cls(tables, prompt_length=prompt_length)


class TableHeadTwist(_PrefixTables, TrainableModule):
    """A table that learns: one parameter for each prefix, V**t at step t; starts at psi = 1.

    It can represent every twist, so that it converges to a loss's optimum at every prefix.

    Args:
        lm: the base model, of a tiny vocabulary; it need not have a hidden state.
        num_steps: T.
        prompt_length: tokens of the prompt, which the tables leave out.
        link: "log", or "sigmoid" for psi <= 1.

    Attributes:
        log_tables: ``log_tables[t - 1]`` has shape (V**(t-1), V), in float64.
    """

    def __init__(
        self, lm: LanguageModel, *, num_steps: int, prompt_length: int = 0, link: str = "log"
    ) -> None:
        super().__init__(lm, link, {"num_steps": num_steps, "prompt_length": prompt_length})
        check_integer("num_steps", num_steps)
        check_integer("prompt_length", prompt_length, at_least=0)
        vocab = self.vocab_size = lm.vocab_size
        self.prompt_length = prompt_length
        if vocab ** min(num_steps, 64) > _MOST_ENTRIES:
            raise BudgetError(
                f"a table of every prefix of {num_steps} tokens out of {vocab} has "
                f"{vocab}**{num_steps} entries, more than {_MOST_ENTRIES}: use LinearHeadTwist, or "
                "fewer steps."
            )
        self.log_tables = nn.ParameterList(
            torch.zeros(vocab**t, vocab, dtype=torch.float64, device=lm.device)
            for t in range(num_steps)
        )

    # The one that refuses an observation.
    log_psi = OnePassTwist.log_psi

    def log_psi_next(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        base: TeacherForced | None = None,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch steps vocab"]:
        """Log psi_t(s_{<t}, .) for t = 1..T, with gradients to the entries that are read."""
        self._check_unconditional(observed)
        if prompt_length != self.prompt_length:
            raise ValueError(
                f"these tables stand after a prompt of {self.prompt_length} tokens; got "
                f"prompt_length={prompt_length}."
            )
        steps = self._walk(tokens, prompt_length)
        return torch.stack([step.log_psi_next for step in steps], dim=1)

    def _last_layer(self) -> list[Tensor]:
        return list(self.log_tables)

    def _value(self, carry: TabularCarry) -> Float[Tensor, "batch vocab"]:
        return self._linked(super()._value(carry))
