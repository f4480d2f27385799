"""A run in pages of bytes: each holds some steps, and a page that is full never changes again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import traitlets

from tsmc_widgets import numerics
from tsmc_widgets.smc.genealogy import relative_variance

NUM_PAGES = 16
"""Pages of a run. A live run sends its newest page again and again, the full ones once."""

PageTraits = type(
    "PageTraits",
    (traitlets.HasTraits,),
    {f"page{i}": traitlets.Bytes(b"").tag(sync=True) for i in range(NUM_PAGES)},
)
"""The pages as traits of a widget."""

_TINY = np.finfo(np.float32).smallest_subnormal


class Words:
    """Places of tokens in one list of texts that only grows.

    Attributes:
        texts: text of each place.
        ids: token id of each place.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.ids: list[int] = []
        self._places = np.full(0, -1, dtype=np.int64)

    def place(self, tokens: np.ndarray, texts: Any) -> np.ndarray:
        """The places of tokens; unknown ones are added with what ``texts`` says of them."""
        seen = np.unique(tokens)
        missing = int(seen[-1]) + 1 - len(self._places) if seen.size else 0
        if missing > 0:
            self._places = np.concatenate([self._places, np.full(missing, -1)])
        new = seen[self._places[seen] < 0]
        self._places[new] = len(self.texts) + np.arange(len(new))
        self.texts += [texts[int(token)] for token in new]
        self.ids += new.tolist()
        return _small(self._places[tokens])

    def find(self, token: int | None) -> int:
        """The place of one token; -1 where it has not occurred."""
        known = token is not None and 0 <= token < len(self._places)
        return int(self._places[token]) if known else -1


class Pages:
    """The pages of one run, which may still grow.

    Args:
        run: which of the trace's runs.
        size: steps of a page.
        number: tells the view which pages belong together.
    """

    def __init__(self, run: int, size: int, number: int) -> None:
        self.run, self.size, self.number = run, size, number
        self.steps = 0
        self.words = Words()
        self.pages: list[bytes] = []
        self._known: list[int] = []
        self._errors: list[float] = []

    def extend(self, trace: Any) -> None:
        """Encode the steps that are new; those before must be the same as last time."""
        while len(self._errors) < trace.steps_done:
            self._errors.append(_standard_error(trace, self.run, len(self._errors) + 1))
        first_page = self.steps // self.size
        for page in range(first_page, -(-trace.steps_done // self.size)):
            steps = slice(page * self.size, min((page + 1) * self.size, trace.steps_done))
            del self.pages[page:], self._known[page + 1 :]
            if len(self._known) == page:
                self._known.append(len(self.words.texts))
            self.pages.append(self._encode(trace, steps, self._known[page]))
        self.steps = trace.steps_done

    def _encode(self, trace: Any, steps: slice, known: int) -> bytes:
        columns = self._population(trace, steps) | _token_columns(trace, self.run, steps)
        columns["tokens"] = self.words.place(columns["tokens"], trace.token_texts)
        if trace.tables:
            tables = _tables(trace, self.run, steps)
            tables["table_tokens"] = self.words.place(tables["table_tokens"], trace.token_texts)
            columns |= tables
        facts = {
            "id": self.number,
            "first": steps.start,
            "steps": steps.stop - steps.start,
            "known": known,
            "texts": self.words.texts[known:],
            "table_width": int(trace.tables[0].tokens.shape[1]) if trace.tables else 0,
        }
        return pack(facts, columns)

    def _population(self, trace: Any, steps: slice) -> dict[str, np.ndarray]:
        """What every view of a run needs of some steps."""

        def column(name: str) -> np.ndarray:
            return array(getattr(trace.columns, name)[self.run])[steps]

        log_weights = column("log_weights")
        weights = numerics.normalise(torch.from_numpy(np.array(log_weights))).numpy()
        # A weight too small for float32 must not look dead.
        weights = np.where(np.isneginf(log_weights), 0.0, np.maximum(weights, _TINY))
        return {
            "ancestors": _small(column("ancestors")),
            "weights": weights.astype(np.float32),
            "resampled": column("resampled").astype(np.uint8),
            "ess": column("ess").astype(np.float64),
            "log_z": column("log_z").astype(np.float64),
            "log_z_error": np.array(self._errors[steps]),
        }


def array(column: Any) -> np.ndarray:
    """A column as numpy; it may be a tensor on any device."""
    return column.detach().cpu().numpy() if isinstance(column, torch.Tensor) else np.asarray(column)


def _small(places: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them."""
    return places.astype(np.uint16 if places.max(initial=0) < 2**16 else np.uint32)


def _token_columns(trace: Any, run: int, steps: slice) -> dict[str, np.ndarray]:
    """Tokens and their log-probabilities, step-major, in the smallest types that show them."""
    columns = {"tokens": array(trace.columns.tokens[run])[steps]}
    for name in ("log_increment", "log_psi", "log_p", "log_q"):
        columns[name] = array(getattr(trace.columns, name)[run])[steps].astype(np.float32)
    return columns


def _tables(trace: Any, run: int, steps: slice) -> dict[str, np.ndarray]:
    """Tables of next tokens, one step after the other, of the prefixes that this run has."""
    parts: dict[str, list[np.ndarray]] = {}
    for table in trace.tables[steps]:
        used, rows = np.unique(array(table.rows)[run], return_inverse=True)
        found = {"table_rows": _small(rows.reshape(-1)), "table_sizes": np.uint32([len(used)])}
        for name in ("tokens", "log_p", "log_q", "log_psi"):
            values = array(getattr(table, name))[used]
            found[f"table_{name}"] = values if name == "tokens" else values.astype(np.float32)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    joined["table_rows"] = _small(joined["table_rows"])
    return joined


def _standard_error(trace: Any, run: int, t: int) -> float:
    """Standard error of the running log Z_hat after step t, from this run's genealogy alone.

    NaN where it says nothing: all particles share one ancestor, or slot 0 was given.
    """
    if trace.info.conditional:
        return float("nan")
    ancestors = torch.as_tensor(trace.columns.ancestors[run : run + 1, :t])
    resampled = torch.as_tensor(trace.columns.resampled[run : run + 1, :t])
    weights = numerics.normalise(torch.as_tensor(trace.columns.log_weights[run : run + 1, t - 1]))
    variance = float(relative_variance(ancestors, resampled, weights, since=1))
    # Zero variance may come out a rounding error below zero.
    return max(variance, 0.0) ** 0.5 if -1e-9 < variance < 1.0 else float("nan")


def pack(facts: dict[str, Any], columns: dict[str, np.ndarray]) -> bytes:
    """Length of a JSON text, the text, and all columns, each at a multiple of 8 after it."""
    entries: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    offset = 0
    for name, column in columns.items():
        chunk = np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<")).tobytes()
        entries.append(
            {"name": name, "dtype": column.dtype.name, "offset": offset, "length": column.size}
        )
        chunks.append(chunk + bytes(-len(chunk) % 8))
        offset += len(chunks[-1])
    text = json.dumps(facts | {"columns": entries}).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return b"".join([len(text).to_bytes(4, "little"), text, *chunks])


def unpack(page: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What ``pack`` was given."""
    start = 4 + int.from_bytes(page[:4], "little")
    facts = json.loads(page[4:start])
    columns: dict[str, np.ndarray] = {}
    for entry in facts.pop("columns"):
        kind = np.dtype(entry["dtype"]).newbyteorder("<")
        columns[entry["name"]] = np.frombuffer(page, kind, entry["length"], start + entry["offset"])
    return facts, columns


def pad(pages: Sequence[bytes]) -> tuple[bytes, ...]:
    """As many pages as the view has, the last ones empty."""
    return (*pages, *[b""] * (NUM_PAGES - len(pages)))
