"""Potentials on decoded text, evaluated once for each distinct text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.targets.checked import FailedOnText, as_log_phi, call_on, show_text
from tsmc_widgets.targets.protocol import BoundOnly

Scope = Literal["continuation", "full"]
"""Which text a potential sees: what was generated, or prompt and generated part together."""

CACHE_SIZE = 100_000

T = TypeVar("T")


class TextCache(Generic[T]):
    """What a function gave for each text; the oldest go when there are too many."""

    def __init__(self, size: int = CACHE_SIZE) -> None:
        self.size = size
        self._known: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._known)

    def look_up(self, texts: Sequence[str], compute: Callable[[list[str]], Sequence[T]]) -> list[T]:
        """Value of each text; ``compute`` sees each unknown one once.

        Nothing is kept unless ``compute`` returns, so an interrupt leaves the cache as it was.
        """
        wanted = dict.fromkeys(texts)
        known = {text: self._known[text] for text in wanted if text in self._known}
        unknown = [text for text in wanted if text not in known]
        if unknown:
            fresh = dict(zip(unknown, compute(unknown), strict=True))
            known.update(fresh)
            self._known.update(fresh)
            for text in list(islice(self._known, max(0, len(self._known) - self.size))):
                self._known.pop(text, None)
        return [known[text] for text in texts]


class TextPotential(BoundOnly, kind=False):
    """A potential that works on text; a subclass gives ``log_phi_of_texts``.

    Args:
        scope: "full" for prompt and generated part as one text, "continuation" for the generated
            part alone (the full text less the prompt's).
    """

    def __init__(self, *, scope: Scope) -> None:
        check_one_of("scope", scope, ("continuation", "full"))
        self.scope = scope

    def log_phi_of_texts(self, texts: Sequence[str]) -> Any:
        """Log phi of each text, in nats; the texts are distinct."""
        raise NotImplementedError

    @cached_property
    def _cache(self) -> TextCache[float]:
        """Of one target alone."""
        return TextCache()

    def texts(self, tokens: Int[Tensor, "batch steps"]) -> list[str]:
        """The texts that this potential sees."""
        context = self.context
        return context.full_texts(tokens) if self.scope == "full" else context.texts(tokens)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log phi of each row's text, from the cache where the text has been seen."""
        steps = tokens.shape[1]
        values = self._cache.look_up(
            self.texts(tokens), lambda texts: self._evaluate(texts, steps).tolist()
        )
        return torch.tensor(values, dtype=torch.float64, device=tokens.device)

    def _evaluate(self, texts: list[str], step: int) -> Tensor:
        name, size = self.describe(), (len(texts),)
        values = call_on(self.log_phi_of_texts, texts, name, step, show_text, "texts")
        return as_log_phi(values, size, name=name, show=lambda index: show_text(texts[index[0]]))


def each_text(function: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    """Call a function of one text on each; an exception remembers its text."""
    values = []
    for text in texts:
        try:
            values.append(function(text))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise FailedOnText(text) from error
    return values
