"""Two runs side by side, and what differs between them in a sentence of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

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
    """

    trace: Any
    settings: RunSettings
    seconds: float


def compare(a: Pinned, b: Pinned) -> str:
    """The differences from run A to run B, in words and numbers."""
    changed = [
        f"{_NAMES.get(f.name, f.name)} {_said(getattr(a.settings, f.name))} → "
        f"{_said(getattr(b.settings, f.name))}"
        for f in fields(RunSettings)
        if getattr(a.settings, f.name) != getattr(b.settings, f.name)
    ]
    same_noise = all(
        getattr(a.settings, name) == getattr(b.settings, name) for name in ("seed", "num_particles")
    )
    noise = "on the same noise" if same_noise else "on other noise"
    parts = [
        f"log Ẑ {_estimate(a)} → {_estimate(b)}{_difference(a.trace.log_z, b.trace.log_z)}",
        f"ESS at the end {_ess(a)} → {_ess(b)}",
        f"first tokens left {_families(a)} → {_families(b)}",
        f"{a.seconds:.1f} → {b.seconds:.1f} s",
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


def _estimate(run: Pinned) -> str:
    if run.trace.info.conditional or not run.trace.steps_done:
        return _number(run.trace.log_z)
    variance = run.trace.log_z_variance()
    known = -1e-9 < variance < 1.0
    return _number(run.trace.log_z) + (
        f" ± {math.sqrt(max(variance, 0.0)):.2f} s.e." if known else ""
    )


def _difference(a: float, b: float) -> str:
    if not (math.isfinite(a) and math.isfinite(b)):
        return ""
    return f" ({'+' if b > a else ''}{_number(b - a)} nats)"


def _ess(run: Pinned) -> str:
    last = float(run.trace.ess[-1]) if run.trace.steps_done else math.nan
    return f"{last:.1f} of {run.trace.num_particles}"


def _families(run: Pinned) -> str:
    return str(int(run.trace.surviving_ancestors()[0])) if run.trace.steps_done else "–"
