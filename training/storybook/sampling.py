"""Plain sampling from the language model, to measure it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

CHUNK = 8192


@torch.inference_mode()
def draw(
    model: PreTrainedModel, prompt: list[int], *, num_steps: int, num_draws: int, seed: int
) -> Tensor:
    """Draws from the model, prompt included: (num_draws, len(prompt) + num_steps), seeded."""
    generator = torch.Generator().manual_seed(seed)
    chunks = []
    for start in range(0, num_draws, CHUNK):
        size = min(CHUNK, num_draws - start)
        chunks.append(_extend(model, prompt, num_steps, size, generator))
    return torch.cat(chunks)


def _extend(
    model: PreTrainedModel,
    prompt: list[int],
    num_steps: int,
    num_draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Sample step by step; the model runs once for each distinct prefix."""
    tokens = torch.tensor([prompt]).expand(num_draws, -1)
    fresh, cache = tokens[:1], None  # (prefixes, 1) after the first step
    rows = torch.zeros(num_draws, dtype=torch.long)  # each draw's prefix
    for _ in range(num_steps):
        out = model(fresh, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, probs = out.past_key_values, out.logits[:, -1].float().softmax(-1)
        chosen = torch.multinomial(probs[rows], 1, generator=generator)  # (draws, 1)
        tokens = torch.cat([tokens, chosen], dim=1)
        pairs, rows = torch.unique(rows * probs.shape[1] + chosen[:, 0], return_inverse=True)
        cache.batch_select_indices(pairs // probs.shape[1])
        fresh = (pairs % probs.shape[1])[:, None]
    return tokens


@torch.inference_mode()
def score(classifier: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits of the classifier on token rows without padding: (rows, labels)."""
    pieces = [classifier(chunk).logits.float() for chunk in tokens.split(CHUNK)]
    return torch.cat(pieces)
