"""Tables as figures read them: which columns are there, and which rows make a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from tsmc_widgets.errors import as_list, check_kind, quoted

LABELS = ("problem", "method", "form", "rule")
"""Columns that may tell lines apart, most telling first."""


def check_frame(frame: Any) -> None:
    """Raise TypeError unless it is a table."""
    check_kind("frame", frame, pd.DataFrame, "a table, such as to_frame() gives")


def require(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise ValueError unless a table has these columns and a row."""
    check_frame(frame)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{what} needs columns {', '.join(columns)}; the table lacks {', '.join(missing)} and "
            f"has {', '.join(map(str, frame.columns))}."
        )
    if frame.empty:
        raise ValueError(f"{what} has nothing to draw: the table has no rows.")


def pick(frame: pd.DataFrame, quantity: str, renamed: str) -> pd.DataFrame:
    """Rows of one quantity of a results table, its value renamed; other tables as they are."""
    check_frame(frame)
    if "quantity" not in frame.columns or "value" not in frame.columns:
        return frame
    rows = frame[frame["quantity"] == quantity]
    return rows.rename(columns={"value": renamed})


def lines(
    frame: pd.DataFrame, by: str | Sequence[str] | None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and rows of each line, in the order in which they appear.

    ``by`` None takes the columns of ``LABELS`` whose values differ.
    """
    if by is None:
        known = [name for name in LABELS if name in frame.columns]
        differ = [name for name in known if frame[name].nunique(dropna=False) > 1]
        # A rule is already part of the name of a method such as "SMC, every step".
        if "method" in differ and "rule" in differ:
            pairs = frame[["method", "rule"]].drop_duplicates()
            if len(pairs) == frame["method"].nunique():
                differ.remove("rule")
        names = differ or known[:1]
    else:
        names = as_list("by", by)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"by must be a name of a column, or a list of these; got {quoted(by)}.")
        require(frame, names, "by")
    if not names:
        yield "", frame
        return
    keys = frame[names].astype(str).agg(" · ".join, axis=1)
    for key in dict.fromkeys(keys):
        yield key, frame[keys == key]


def exact_of(frame: pd.DataFrame) -> float | None:
    """The exact value that all rows share; None where none or several are known."""
    known = frame["exact"].dropna().unique() if "exact" in frame.columns else []
    return float(known[0]) if len(known) == 1 else None


def one_row_each(frame: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Raise ValueError where a line has two values at one place."""
    twice = frame[frame.duplicated(list(columns), keep=False)]
    if len(twice):
        place = ", ".join(f"{column} = {twice.iloc[0][column]}" for column in columns)
        raise ValueError(
            f"line {name!r} has {len(twice)} rows where one is due ({place}): take the mean over "
            "seeds first, or name the columns that tell lines apart with by=."
        )
