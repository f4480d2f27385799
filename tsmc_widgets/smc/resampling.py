"""Resampling schemes and the rules that say when to resample.

Every scheme is unbiased: the expected number of copies of particle k is K times its normalised
weight (Douc, Cappe and Moulines 2005 compare the four).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_kind, check_number, check_one_of, quoted, set_integers
from tsmc_widgets.numerics import normalise

Weights = Float[Tensor, "runs particles"]
Ancestors = Int[Tensor, "runs particles"]
Scheme = Callable[[Weights, Weights], Ancestors]
# Cells of a table that are copied rather than searched in place.
_GATHERED = 2**20


def invert_cdf(
    mass: Float[Tensor, "rows n"], uniforms: Float[Tensor, "rows draws"]
) -> Int[Tensor, "rows draws"]:
    """Index i with probability mass[i] / sum(mass), by inversion; never one of zero mass."""
    return search_cdf(torch.cumsum(mass, dim=-1, dtype=torch.float64), uniforms)


def search_cdf(
    cdf: Float[Tensor, "rows n"], uniforms: Float[Tensor, "rows draws"]
) -> Int[Tensor, "rows draws"]:
    """``invert_cdf`` where the cumulative mass is at hand (float64, its last entry the total)."""
    return torch.searchsorted(cdf, _places(cdf[..., -1:], uniforms), right=True)


def _places(total: Tensor, uniforms: Tensor) -> Tensor:
    """Where uniforms fall below the total mass, which none reaches by rounding."""
    return torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))


def search_rows(
    cdf: Float[Tensor, "rows n"], own: Int[Tensor, " draws"], uniforms: Float[Tensor, " draws"]
) -> Int[Tensor, " draws"]:
    """``search_cdf`` for draws that share rows: each one's row is ``own``."""
    if own.shape[0] * cdf.shape[1] <= _GATHERED:
        return search_cdf(cdf[own], uniforms.unsqueeze(1)).squeeze(1)
    wanted = _places(cdf[own, -1], uniforms)
    # Bisection: a copy of a row for each draw would outweigh all else.
    low, high = torch.zeros_like(own), torch.full_like(own, cdf.shape[1] - 1)
    for _ in range((cdf.shape[1] - 1).bit_length()):
        middle = (low + high) // 2
        after = cdf[own, middle] <= wanted
        low, high = torch.where(after, middle + 1, low), torch.where(after, high, middle)
    return low


def multinomial(weights: Weights, uniforms: Weights) -> Ancestors:
    """K independent draws."""
    return invert_cdf(weights, uniforms)


def stratified(weights: Weights, uniforms: Weights) -> Ancestors:
    """One draw in each of K equal strata of the cumulative weight."""
    strata = torch.arange(weights.shape[-1], dtype=torch.float64, device=weights.device)
    return invert_cdf(weights, (strata + uniforms) / weights.shape[-1])


def systematic(weights: Weights, uniforms: Weights) -> Ancestors:
    """One draw shared by K equal strata."""
    return stratified(weights, uniforms[..., :1].expand_as(uniforms))


def residual(weights: Weights, uniforms: Weights) -> Ancestors:
    """floor(K w) sure copies of each, the rest drawn independently from what is left."""
    size = weights.shape[-1]
    scaled = weights * size
    # A weight of exactly c / K may arrive a rounding error below it: it still owes c sure copies.
    nearest = torch.round(scaled)
    copies = torch.where((scaled - nearest).abs() < 1e-13 * size, nearest, torch.floor(scaled))
    left = (scaled - copies).clamp(min=0)
    ends = torch.cumsum(copies, dim=-1)
    slots = torch.arange(size, dtype=torch.float64, device=weights.device)
    sure = torch.searchsorted(ends, slots.expand_as(ends).contiguous(), right=True)
    nothing_left = left.sum(-1, keepdim=True) == 0
    drawn = invert_cdf(torch.where(nothing_left, weights, left), uniforms)
    return torch.where(slots < ends[..., -1:], sure.clamp(max=size - 1), drawn)


SCHEMES: dict[str, Scheme] = {
    "multinomial": multinomial,
    "residual": residual,
    "stratified": stratified,
    "systematic": systematic,
}


def resample(log_weights: Weights, uniforms: Weights, resampler: str) -> Ancestors:
    """Ancestors by a scheme of ``SCHEMES``; runs whose weights are all zero keep their own."""
    check_one_of("resampler", resampler, sorted(SCHEMES))
    weights = normalise(log_weights)
    dead = weights.sum(-1, keepdim=True) == 0
    identity = torch.arange(weights.shape[-1], device=weights.device).expand_as(weights)
    ancestors = SCHEMES[resampler](torch.where(dead, 1.0, weights), uniforms)
    return torch.where(dead, identity, ancestors)


@runtime_checkable
class ResampleRule(Protocol):
    """When to resample: asked before every step but the first."""

    def due(
        self, step: int, ess: Float[Tensor, " runs"], num_particles: int
    ) -> Bool[Tensor, " runs"]:
        """Which runs resample before ``step``, given the ESS after the step before it."""
        ...

    def describe(self) -> str:
        """The rule in a few words."""
        ...


@dataclass(frozen=True, slots=True)
class ESSBelow:
    """Resample a run when its ESS is below ``threshold`` times K."""

    threshold: float | int = 0.5

    def __post_init__(self) -> None:
        """Check the threshold."""
        # A fraction of K: 0 never resamples, 1 whenever weights differ.
        threshold = check_number("ess_threshold", self.threshold, "[0, 1]")
        object.__setattr__(self, "threshold", threshold)

    def due(
        self, step: int, ess: Float[Tensor, " runs"], num_particles: int
    ) -> Bool[Tensor, " runs"]:
        """Where the ESS is below the threshold; equal weights never are."""
        # Rounding must not make K equal weights look like fewer than K.
        return ess < self.threshold * num_particles * (1 - 1e-12)

    def describe(self) -> str:
        """The rule in a few words."""
        return f"ESS < {self.threshold:g} K"


@dataclass(frozen=True, slots=True)
class EveryNSteps:
    """Resample before steps n+1, 2n+1, ...; n = 1 is every step."""

    n: int = 1

    def __post_init__(self) -> None:
        """Check n."""
        set_integers(self, n=1)

    def due(
        self, step: int, ess: Float[Tensor, " runs"], num_particles: int
    ) -> Bool[Tensor, " runs"]:
        """All runs or none."""
        return torch.full_like(ess, (step - 1) % self.n == 0, dtype=torch.bool)

    def describe(self) -> str:
        """The rule in a few words."""
        return "every step" if self.n == 1 else f"every {self.n} steps"


@dataclass(frozen=True, slots=True)
class Never:
    """Never resample: sequential importance sampling, the IWAE bound."""

    def due(
        self, step: int, ess: Float[Tensor, " runs"], num_particles: int
    ) -> Bool[Tensor, " runs"]:
        """None."""
        return torch.zeros_like(ess, dtype=torch.bool)

    def describe(self) -> str:
        """The rule in a few words."""
        return "never"


def Always() -> EveryNSteps:
    """Resample before every step but the first."""
    return EveryNSteps(1)


RULES: dict[str, Callable[[], ResampleRule]] = {"always": Always, "never": Never, "ess": ESSBelow}


def resolve_rule(rule: str | ResampleRule | None, ess_threshold: float | None) -> ResampleRule:
    """The rule that ``rule`` and ``ess_threshold`` name; ESS < 0.5 K when both are None."""
    if rule is not None and ess_threshold is not None:
        raise ValueError(
            f"give rule or ess_threshold, not both; got rule={quoted(rule)} and "
            f"ess_threshold={quoted(ess_threshold)}."
        )
    if rule is None:
        return ESSBelow(0.5 if ess_threshold is None else ess_threshold)
    if isinstance(rule, str):
        check_one_of("rule", rule, RULES)
        return RULES[rule]()
    check_rule(rule)
    return rule


def check_rule(rule: Any) -> None:
    """Raise TypeError unless it can be asked when to resample."""
    check_kind("rule", rule, ("due",), "always, ess, never or an object such as EveryNSteps(2)")
