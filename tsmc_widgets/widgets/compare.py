"""Two runs side by side, and what differs between them in a sentence of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from tsmc_widgets.evaluation.spec import RunSpec
from tsmc_widgets.widgets.formula import words_of
from tsmc_widgets.widgets.settings import RunSettings

_NAMES = {
    "num_steps": "T",
    "num_particles": "K",
    "star_beta": "stars β",
    "hostility_at_least": "η",
    "hostility_beta": "hostility β",
    "ess_threshold": "ESS below",
    "resampler": "resampling",
    "twist": "twist ψ",
    "proposal": "proposal q",
    "eos": "EOS",
}


@dataclass(frozen=True, slots=True)
class Pinned:
    """A finished run that is kept to be compared with.

    Attributes:
        trace: its record.
        settings: what it was asked for.
        seconds: how long it took.
        target: what was sampled, where that is at hand.
        exact_log_z: log Z in nats where it is known.
        bracket: a certified bracket of it, where one is known and narrow.
    """

    trace: Any
    settings: RunSettings | RunSpec
    seconds: float
    target: Any = None
    exact_log_z: float | None = None
    bracket: Any = None

    @property
    def words(self) -> dict[str, Any]:
        """What it was asked for, by the names that people see."""
        if isinstance(self.settings, RunSpec):
            return words_of(self.settings)
        named = {_NAMES.get(f.name, f.name): f.name for f in fields(self.settings)}
        return {name: getattr(self.settings, field) for name, field in named.items()}


def compare(a: Pinned, b: Pinned) -> str:
    """The differences from run A to run B, in words and numbers."""
    before, after = a.words, b.words
    changed = [
        f"{name} {_said(before.get(name, 'none'))} → {_said(after.get(name, 'none'))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    same_noise = all(before.get(name) == after.get(name) for name in ("seed", "K", "R"))
    noise = "on the same noise" if same_noise else "on other noise"
    parts = [
        f"log Ẑ {_estimate(a)} → {_estimate(b)}{_difference(_log_z(a), _log_z(b))}",
        f"ESS at the end {_ess(a)} → {_ess(b)}",
        *_allowed(a, b),
        f"first tokens left {_families(a)} → {_families(b)}",
        f"{_seconds(a)} → {_seconds(b)} s",
    ]
    what = "; ".join(changed) if changed else "nothing has changed yet"
    return f"A → B, {noise}: {what}. {', '.join(parts)}."


def _said(value: Any) -> str:
    if value == "":
        return "nothing"
    return f"“{value}”" if isinstance(value, str) and " " in value else f"{value}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "−∞" if value < 0 else "unknown"
    return f"{value:.2f}".replace("-", "−")


def _seconds(run: Pinned) -> str:
    return f"{run.seconds:.1f}" if run.seconds >= 0.05 else f"{run.seconds:.2f}"


def _log_z(run: Pinned) -> float:
    """Of one run; of several, the mean, which is a lower bound on log Z."""
    value = run.trace.log_z
    return value if isinstance(value, float) else float(value.mean())


def _estimate(run: Pinned) -> str:
    trace = run.trace
    if trace.num_runs > 1:
        spread = float(trace.log_z.std()) / math.sqrt(trace.num_runs)
        error = f" ± {spread:.2f} s.e." if math.isfinite(spread) else ""
        return f"{_number(_log_z(run))}{error} (mean of {trace.num_runs})"
    if trace.info.conditional or not trace.steps_done:
        return _number(trace.log_z)
    variance = trace.log_z_variance()
    known = -1e-9 < variance < 1.0
    return _number(trace.log_z) + (f" ± {math.sqrt(max(variance, 0.0)):.2f} s.e." if known else "")


def _difference(a: float, b: float) -> str:
    if not (math.isfinite(a) and math.isfinite(b)):
        return ""
    return f" ({'+' if b > a else ''}{_number(b - a)} nats)"


def _ess(run: Pinned) -> str:
    ess = run.trace.columns.ess
    last = float(ess[:, -1].mean()) if run.trace.steps_done else math.nan
    return f"{last:.1f} of {run.trace.num_particles}"


def _allowed(a: Pinned, b: Pinned) -> list[str]:
    """How many texts phi accepts, where it can refuse any."""
    counts = []
    for run in (a, b):
        if not run.trace.done:
            return []
        log_phi = run.trace.columns.log_psi[:, -1]
        counts.append((int((log_phi > -math.inf).sum()), log_phi.numel()))
    if all(accepted == total for accepted, total in counts):
        return []
    (before, of), (after, all_) = counts
    return [f"accepted by φ {before} of {of} → {after} of {all_} texts"]


def _families(run: Pinned) -> str:
    if not run.trace.steps_done:
        return "–"
    counts = torch.as_tensor(run.trace.surviving_ancestors(), dtype=torch.float64)
    return f"{float(counts.reshape(run.trace.num_runs, -1)[:, 0].mean()):g}"
