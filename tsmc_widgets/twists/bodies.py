"""Twists that read hidden states: heads, bodies of their own, adapters, and those given an o."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.errors import (
    UnsupportedModelError,
    check_integer,
    check_number,
    check_one_of,
    import_extra,
    quoted,
)
from tsmc_widgets.models.protocol import (
    Carry,
    LanguageModel,
    LMStep,
    TeacherForced,
    check_model,
    optional,
)
from tsmc_widgets.twists.protocol import OnePassTwist, TwistStep, of_other
from tsmc_widgets.twists.trainable import (
    BaseStates,
    NeuralTwist,
    hidden_width,
    linear_head,
    mlp_head,
)

HEADS = ("linear", "mlp")


class _NoVocabulary(nn.Module):
    """Replaces a body's output embedding, whose inputs are all that a head reads."""

    out_features = 1

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", like.new_empty(0), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """One column, so that the model's own answer costs nothing."""
        return states[..., :1]


class OwnStates(BaseStates):
    """Hidden states of another body than the base model's, in teacher forcing with gradients."""

    def __init__(self, lm: Any, body: Any) -> None:
        """Step ``body``, which ``bare_copy`` made, as the base model is stepped."""
        from tsmc_widgets.models.huggingface import HuggingFaceLM

        self.reader = HuggingFaceLM(body, lm.tokenizer, max_rows=lm.max_rows)
        self.width = hidden_width(self.reader)

    def prefill(self, tokens: Tensor, lm_step: LMStep) -> tuple[Tensor, Carry]:
        """States (batch, width) after whole prefixes, and what to carry on."""
        step = self.reader.prefill(tokens)
        return step.hidden, step.carry

    def advance(self, tokens: Tensor, carry: Any, lm_step: LMStep) -> tuple[Tensor, Carry]:
        """States (batch, width) after one more token."""
        step = self.reader.advance(tokens, carry)
        return step.hidden, step.carry

    def teacher_force(
        self, tokens: Tensor, prompt_length: int, base: TeacherForced | None
    ) -> Float[Tensor, "batch steps width"]:
        """States that predict each token after the prompt."""
        return self.reader.teacher_force(tokens, prompt_length).hidden


def bare_copy(lm: LanguageModel, *, share: bool) -> nn.Module:
    """The base model's body, without its output embedding.

    Args:
        lm: the base model, a ``HuggingFaceLM``; it stays as it is.
        share: whether the copy is made of the base model's own tensors, frozen; else they are
            copied, to float32 where they are of lower precision, and learn.

    Raises:
        UnsupportedModelError: the base model is none of transformers.
    """
    check_model(lm)
    transformers = import_extra("transformers", "hf", "A twist with a body of its own")
    model = optional(lm, "model")
    if not isinstance(model, transformers.PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(lm).__name__} has no transformer body to copy: use TableHeadTwist for a tiny "
            "vocabulary, or a base model that load_language_model gives."
        )
    head = model.get_output_embeddings()
    memo: dict[int, Any] = {id(head): _NoVocabulary(head.weight.detach())}
    if share:
        memo |= shared_tensors(model)
    body = copy.deepcopy(model, memo).eval()
    if share:
        return body
    if body.dtype in (torch.float16, torch.bfloat16):
        body = body.float()
    return body.requires_grad_(True)


def shared_tensors(model: nn.Module) -> dict[int, Tensor]:
    """A deepcopy memo for a model whose copy is to be made of the same memory, frozen."""
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return frozen | {id(buffer): buffer for buffer in model.buffers()}


class OwnBodyTwist(NeuralTwist):
    """A twist whose ``body`` learns with it."""

    def __init__(
        self,
        lm: LanguageModel,
        states: OwnStates,
        head: nn.Module,
        link: str,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(lm, states, head, link, options)
        self.body = states.reader.model

    def train(self, mode: bool = True) -> OwnBodyTwist:
        """Set the mode of the head; the body stays in eval mode, where nothing is dropped."""
        super().train(mode)
        self.body.eval()
        return self

    def _shared(self) -> Iterable[Any]:
        return [*super()._shared(), self.lm.tokenizer]


class BodyTwist(OwnBodyTwist):
    """Log psi_t from a transformer of its own: a copy of the base model's body that learns whole.

    Its head starts at zero: psi = 1, so that the twist-induced proposal is p0 exactly. The copy
    is in float32 (float64 for a float64 model) and always in eval mode, so without dropout.

    Args:
        lm: the base model, of transformers; it stays as it is.
        link: "log", or "sigmoid" for psi <= 1.
        head: "linear", or "mlp" for two layers of ReLU before it.
        seed: of the first values of an MLP head.
    """

    def __init__(
        self, lm: LanguageModel, *, link: str = "log", head: str = "linear", seed: int = 0
    ) -> None:
        check_one_of("head", head, HEADS)
        seed = check_integer("seed", seed, at_least=0)
        states = OwnStates(lm, bare_copy(lm, share=False))
        module: nn.Module
        if head == "linear":
            module = linear_head(lm, states.width)
        else:
            module = mlp_head(lm, states.width, width=None, depth=2, seed=seed)
        super().__init__(lm, states, module, link, {"head": head})


class LinearHeadTwist(NeuralTwist):
    """Log psi_t(s_{<t}, .) = W h + b, with h the hidden state that predicts token t.

    Starts at zero: psi = 1, so that the twist-induced proposal is p0 exactly.

    Args:
        lm: the base model, which must have a hidden state; it stays as it is.
        link: "log", or "sigmoid" for psi <= 1.
    """

    def __init__(self, lm: LanguageModel, *, link: str = "log") -> None:
        states = BaseStates(lm)
        super().__init__(lm, states, linear_head(lm, states.width), link)


class MLPHeadTwist(NeuralTwist):
    """Log psi_t(s_{<t}, .) = MLP(h), with h the hidden state that predicts token t.

    The last layer starts at zero: psi = 1, so that the twist-induced proposal is p0 exactly.

    Args:
        lm: the base model, which must have a hidden state; it stays as it is.
        width: of the layers between; None is the hidden state's, as in the paper.
        depth: number of layers of ReLU before the last one.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the first values of the layers between.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        width: int | None = None,
        depth: int = 2,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        states = BaseStates(lm)
        head = mlp_head(lm, states.width, width=width, depth=depth, seed=seed)
        super().__init__(lm, states, head, link, {"width": width, "depth": depth})


class LoRATwist(NeuralTwist):
    """Log psi_t from the base model's body with low-rank adapters (Hu et al. 2021) and a head.

    The body is made of the base model's own tensors, which stay as they are: only adapters and
    head take memory and learn. Head and adapters start at zero: psi = 1, and q = p0 exactly.

    Args:
        lm: the base model, of transformers; its own answers do not change.
        rank: of the adapters.
        alpha: the adapters are scaled by alpha / rank.
        target_modules: names of the layers to adapt, or "all-linear"; None is what peft adapts in
            models of this type (most often queries and values), else all linear layers.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the adapters' first values.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        rank: int = 8,
        alpha: int | float = 16,
        target_modules: str | Sequence[str] | None = None,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        rank, alpha = check_integer("rank", rank), check_number("alpha", alpha, "(0, inf)")
        seed = check_integer("seed", seed, at_least=0)
        body = bare_copy(lm, share=True)
        targets = _targets(body, target_modules)
        adapters = _adapt(body, rank, alpha, targets, seed)
        states = OwnStates(lm, body)
        options = {"rank": rank, "alpha": alpha, "target_modules": targets}
        super().__init__(lm, states, linear_head(lm, states.width), link, options)
        self.adapters = nn.ParameterDict(adapters)

    def _shared(self) -> Iterable[Any]:
        body = self._states.reader.model
        adapters = {id(parameter) for parameter in self.adapters.values()}
        tensors = [*body.parameters(), *body.buffers()]
        return [self.lm, self.lm.tokenizer, *(t for t in tensors if id(t) not in adapters)]


def _adapt(
    body: nn.Module, rank: int, alpha: int | float, targets: str | list[str], seed: int
) -> dict[str, nn.Parameter]:
    """Put adapters into the body; gives them by names that a ParameterDict takes."""
    peft = import_extra("peft", "hf", "LoRATwist")
    transposed = any(type(module).__name__ == "Conv1D" for module in body.modules())
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=transposed,
    )
    # peft draws first values from the global generator, which is the user's.
    with torch.random.fork_rng(devices=[]):
        try:
            peft.inject_adapter_in_model(config, body)
        except ValueError as error:
            raise UnsupportedModelError(
                f"peft cannot adapt target_modules={quoted(targets)} of a {body.config.model_type} "
                f"model: {error}"
            ) from error
    body.eval()
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, parameter in body.named_parameters():
        if not parameter.requires_grad:
            continue
        first = torch.zeros(parameter.shape)
        if "lora_A" in name or "lora_embedding_B" in name:
            nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        parameter.data = first.to(parameter.device)
        adapters[name.replace(".", "/")] = parameter
    return adapters


def _targets(body: nn.Module, target_modules: str | Sequence[str] | None) -> str | list[str]:
    if isinstance(target_modules, str) and target_modules == "all-linear":
        return "all-linear"
    if target_modules is not None:
        # peft takes any other text for a regular expression, which a file may not bring.
        names = list(target_modules) if isinstance(target_modules, list | tuple) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                "target_modules must be a list of names of layers, 'all-linear' or None; got "
                f"{quoted(target_modules)}."
            )
        return names
    known = import_extra(
        "peft", "hf", "LoRATwist"
    ).utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return list(known.get(body.config.model_type, ())) or "all-linear"


_MOST_CODES = 2**14


class ClassEncoder:
    """One-hot codes of class indices, scaled to the norm of the hidden state.

    Unscaled, one entry among a hundred of unit size changes a head's inputs too little: learning
    to tell classes apart takes several times the updates.

    Attributes:
        width: the number of classes.
        length: of each code.
    """

    def __init__(self, lm: LanguageModel, num_classes: int) -> None:
        check_integer("num_classes", num_classes, at_least=2)
        self.lm = lm
        self.width = num_classes
        self.length = math.sqrt(hidden_width(lm))

    def parse(self, observed: int | Sequence[int] | Int[Tensor, " ..."]) -> Int[Tensor, "1 1"]:
        """A user's class index, bare or as a row of one, as a batch of one row."""
        index = torch.as_tensor(observed, device=self.lm.device)
        if index.numel() != 1 or index.is_floating_point():
            raise ValueError(f"observed must be one class index; got {quoted(observed)}.")
        return index.reshape(1, 1)

    def encode(self, observed: Int[Tensor, "batch ..."]) -> Float[Tensor, "batch code"]:
        """A row with one number for each; ``observed`` has shape (batch,) or (batch, 1)."""
        if observed.ndim > 2 or observed.numel() != observed.shape[0]:
            raise ValueError(
                "observed must hold one class index for each row, of shape (batch,) or "
                f"(batch, 1); got {tuple(observed.shape)}."
            )
        classes = observed.reshape(-1)
        if bool(((classes < 0) | (classes >= self.width)).any()):
            raise ValueError(
                f"observed must hold class indices from 0 to {self.width - 1}; got "
                f"{int(classes.min())} to {int(classes.max())}."
            )
        return self.length * nn.functional.one_hot(classes, self.width).float()


class TokenEncoder:
    """The base model's last hidden state after reading o by itself, once for each distinct o."""

    def __init__(self, lm: LanguageModel, length: int) -> None:
        check_integer("observed_length", length)
        self.lm = lm
        self.length = length
        self.width = hidden_width(lm)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def parse(
        self, observed: str | Sequence[int] | Int[Tensor, " ..."]
    ) -> Int[Tensor, "1 observed"]:
        """A user's token ids, or a text of as many tokens, as a batch of one row."""
        ids = self.lm.encode(observed) if isinstance(observed, str) else observed
        tokens = torch.as_tensor(ids, device=self.lm.device)
        if tokens.is_floating_point() or tokens.numel() != self.length:
            raise ValueError(
                f"observed must be {self.length} token ids, or a text of as many tokens; got "
                f"{quoted(observed)}."
            )
        return tokens.reshape(1, -1)

    @torch.no_grad()
    def encode(self, observed: Int[Tensor, "batch ..."]) -> Float[Tensor, "batch code"]:
        """Codes of rows of ``length`` token ids."""
        if observed.ndim != 2 or observed.shape[1] != self.length:
            raise ValueError(
                f"observed must hold {self.length} token ids for each row; got shape "
                f"{tuple(observed.shape)}."
            )
        distinct, rows = torch.unique(observed, dim=0, return_inverse=True)
        keys = [tuple(row) for row in distinct.tolist()]
        codes = [self._known.get(key) for key in keys]
        unread = [at for at, code in enumerate(codes) if code is None]
        if unread:
            if len(self._known) + len(unread) > _MOST_CODES:
                self._known = {}
            # A copy, so that no code keeps the states of its whole batch alive.
            for at, state in zip(unread, self.lm.prefill(distinct[unread]).hidden, strict=True):
                codes[at] = self._known[keys[at]] = state.float().clone()
        return torch.stack(codes)[rows]


class ConditionedTwist(OnePassTwist):
    """A conditional twist under one observation: steps like any twist, learns with its owner.

    Attributes:
        twist: the conditional twist, whose parameters it reads.
        observed: o, a class index or token ids.
        lm: the base model.
    """

    lm, link, method, proposal_only = of_other("twist", "lm", "link", "method", "proposal_only")

    def __init__(self, twist: ConditionalTwist, observed: Int[Tensor, "1 observed"]) -> None:
        """Take what ``twist.condition`` parsed; refuses an observation that cannot be."""
        self.twist, self.observed = twist, observed[0]
        twist.encoder.encode(observed)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The conditional twist's parameters."""
        return self.twist.parameters()

    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts and whatever has been generated after them."""
        return self.twist.prefill(tokens, lm_step, self._rows(tokens))

    def advance(
        self, tokens: Int[Tensor, " batch"], carry: Carry | None, lm_step: LMStep
    ) -> TwistStep:
        """Read one more token for each row; ``carry`` stays valid and unchanged."""
        return self.twist.advance(tokens, carry, lm_step)

    def log_psi_next(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        base: TeacherForced | None = None,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch steps vocab"]:
        """Log psi_t(s_{<t}, ., o) for t = 1..T, with gradients to the conditional twist alone."""
        if observed is not None:
            raise ValueError(
                "this twist stands under one observation already: leave observed out, or give it "
                "to the conditional twist itself."
            )
        return self.twist.log_psi_next(tokens, prompt_length, base, self._rows(tokens))

    def _rows(self, tokens: Tensor) -> Int[Tensor, "batch observed"]:
        return self.observed.expand(len(tokens), -1)


class ConditionalTwist(NeuralTwist):
    """Log psi_t(s_{<t}, ., o) = MLP([state, code of o]); starts at psi = 1 for every o.

    Give each row's ``observed``, or take ``condition(observed)`` for a twist of one observation.
    The code of a class is one-hot, times the square root of the state's width; that of tokens is
    the base model's last state after them, read by themselves and once for each distinct o.

    Args:
        lm: the base model, which stays as it is.
        num_classes: number of classes, where o is a class index.
        observed_length: c, where o is c tokens; give this or ``num_classes``.
        width: of the layers between; None is the hidden state's.
        depth: number of layers of ReLU before the last one.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the first values of the layers between.

    Attributes:
        encoder: makes the code of o.
    """

    is_conditional = True

    def __init__(
        self,
        lm: LanguageModel,
        *,
        num_classes: int | None = None,
        observed_length: int | None = None,
        width: int | None = None,
        depth: int = 2,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        if (num_classes is None) == (observed_length is None):
            raise ValueError(
                "give num_classes for an observed class, or observed_length for observed tokens, "
                f"and not both; got num_classes={quoted(num_classes)} and "
                f"observed_length={quoted(observed_length)}."
            )
        encoder: Any = TokenEncoder if num_classes is None else ClassEncoder
        encoder = encoder(lm, observed_length if num_classes is None else num_classes)
        states = self._new_states(lm)
        options = {"width": width, "depth": depth}
        options |= {"num_classes": num_classes, "observed_length": observed_length}
        # The width of a layer between is the state's, as without an observation.
        inner = states.width if width is None else width
        head = mlp_head(lm, states.width + encoder.width, width=inner, depth=depth, seed=seed)
        super().__init__(lm, states, head, link, options)
        self.encoder = encoder

    def _new_states(self, lm: LanguageModel) -> BaseStates:
        """Where hidden states come from."""
        return BaseStates(lm)

    def condition(
        self, observed: int | str | Sequence[int] | Int[Tensor, " ..."]
    ) -> ConditionedTwist:
        """The twist of one observation: a class index, or token ids (or a text of as many)."""
        return ConditionedTwist(self, self.encoder.parse(observed))

    def _shared(self) -> Iterable[Any]:
        return [*super()._shared(), self.encoder]


class ConditionalHeadTwist(ConditionalTwist):
    """Log psi_t(s_{<t}, ., o) = MLP([h, code of o]), with h the base model's hidden state.

    Takes what ``ConditionalTwist`` takes; the base model must have a hidden state.
    """


class ConditionalBodyTwist(ConditionalTwist, OwnBodyTwist):
    """Log psi_t(s_{<t}, ., o) = MLP([h, code of o]), with h from a body of the twist's own.

    The paper's twist for infilling. Takes what ``ConditionalTwist`` takes; the base
    model must be one of transformers. The body starts as a copy of the base model's and learns
    whole; o is read by the base model, as in ``ConditionalHeadTwist``.
    """

    def _new_states(self, lm: LanguageModel) -> OwnStates:
        return OwnStates(lm, bare_copy(lm, share=False))
