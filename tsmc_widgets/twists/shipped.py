"""Twists that come with the package, one for each shipped problem."""

from __future__ import annotations

from pathlib import Path

# ``python -m tsmc_widgets.evaluation.shipping`` writes them.
WEIGHTS = Path(__file__).with_name("weights")


def shipped_twists() -> tuple[str, ...]:
    """Names of the problems that a trained twist ships for, as ``load_twist`` takes them."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/twist.json")))


def shipped_folder(name: str | Path) -> Path | None:
    """Folder of the twist that ships for a problem; None where there is none of that name."""
    known = isinstance(name, str) and name in shipped_twists()
    return WEIGHTS / name if known else None
