"""What is known of log Z beside a run at little cost: its value, or a certified bracket."""

from __future__ import annotations

from collections.abc import Callable

from tsmc_widgets.errors import BudgetError, TsmcError
from tsmc_widgets.evaluation.bracket import Bracket, bracket_log_z
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.exact import exact
from tsmc_widgets.targets.target import Target

EXACT_BUDGET = 1024
"""Texts that may be enumerated beside a run in order to draw the exact log Z."""
TABLE_BUDGET = 2**14
"""The same where the model is a table."""
BRACKET_TOKENS = 4096
"""Tokens that the model may read for a bracket."""
NARROW = 1.0
"""Width in nats from which on a bracket says less than the runs themselves."""


def exact_log_z(target: Target) -> float | None:
    """Log Z in nats where texts are few or the model is a Markov chain, else None."""
    lm = target.lm
    budget = TABLE_BUDGET if isinstance(lm, TabularLM) else EXACT_BUDGET
    if not (lm.vocab_size**target.num_steps <= budget or getattr(lm, "is_markov", False)):
        return None
    try:
        return exact(target, max_sequences=budget).log_z
    except BudgetError:
        return None


class Overtaken(Exception):
    """The search was given up for a newer run."""


def narrow_bracket(target: Target, overtaken: Callable[[], bool]) -> Bracket | None:
    """A certified bracket of log Z, searched for with little of the model; None where it is wide.

    Args:
        target: whose Z.
        overtaken: whether something else is waiting: then the search is given up.
    """

    def look_up(_: Bracket) -> None:
        if overtaken():
            raise Overtaken

    try:
        found = bracket_log_z(target, max_tokens=BRACKET_TOKENS, on_step=look_up)
    except (TsmcError, Overtaken):
        # No bound on phi is known, the target waits for an observation, or a newer run waits.
        return None
    return found if found.width <= NARROW else None
