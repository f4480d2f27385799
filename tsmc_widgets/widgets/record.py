"""What the browser gets of a run: a small header, and pages of bytes that only grow."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import traitlets

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer, check_kind, check_number, quoted
from tsmc_widgets.evaluation.bracket import Bracket
from tsmc_widgets.evaluation.estimates import PooledOverRuns
from tsmc_widgets.evaluation.run_quality import FactorShare, factor_breakdown, judge_run
from tsmc_widgets.smc.genealogy import paths
from tsmc_widgets.smc.trace import check_trace

NUM_PAGES = 16
"""Pages of a run. A live run sends its newest page again and again, the full ones once."""

PageTraits = type(
    "PageTraits",
    (traitlets.HasTraits,),
    {f"page{i}": traitlets.Bytes(b"").tag(sync=True) for i in range(NUM_PAGES)},
)
"""The pages as traits of a widget."""

_TINY = np.finfo(np.float32).smallest_subnormal


WAITS = "\u25cc"
"""Stands for bytes of a character that a later token may complete."""
_BYTES = re.compile("(?:<0x[0-9A-F]{2}>)+")


class Words:
    """Places of tokens in one list of texts that only grows.

    A token that ends amid a character reads ``WAITS`` there, and one that completes it reads the
    whole character: what a token reads like depends on the bytes that wait before it.

    Attributes:
        texts: text of each place.
        waiting: the bytes that may wait, by number; none at 0.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.waiting = [b""]
        self._places: dict[int, int] = {}
        self._after: list[int] = []

    def place(
        self, tokens: np.ndarray, before: np.ndarray, texts: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The place of each token, and the number of what waits after it.

        Args:
            tokens: ids.
            before: number of what waits before each of them.
            texts: what each token reads like alone, by id.
        """
        keys, inverse = np.unique(before.astype(np.int64) << 32 | tokens, return_inverse=True)
        for key in keys.tolist():
            if key not in self._places:
                self._places[key] = self._add(key & (2**32 - 1), key >> 32, texts)
        places = np.array([self._places[key] for key in keys.tolist()], dtype=np.uint32)
        after = np.array([self._after[place] for place in places], dtype=np.uint32)
        return places[inverse.reshape(-1)], after[inverse.reshape(-1)]

    def find(self, token: int | None) -> int:
        """The place of one token after whole characters; -1 where it has not occurred."""
        return self._places.get(-1 if token is None else token, -1)

    def _add(self, token: int, before: int, texts: Any) -> int:
        text, rest = texts[token], b""
        if _BYTES.fullmatch(text):
            new = bytes.fromhex(re.sub("<0x|>", "", text))
            decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
            text = decoder.decode(self.waiting[before] + new)
            rest = decoder.getstate()[0]
            if rest:  # A blank before the character comes with it.
                whole, text = text, text.rstrip(" ")
                rest = whole[len(text) :].encode() + rest
                text += WAITS
        elif before:
            # A text of its own leaves the character before it unfinished.
            return self.place(np.array([token]), np.zeros(1), texts)[0].item()
        if rest not in self.waiting:
            self.waiting.append(rest)
        self.texts.append(text)
        self._after.append(self.waiting.index(rest))
        return len(self.texts) - 1


class Pages:
    """The pages of one run, which may still grow.

    Args:
        run: which of the trace's runs.
        size: steps of a page.
        number: tells the view which pages belong together.
        panels: whether they hold log Z_hat of all runs in place of tokens.
    """

    def __init__(self, run: int, size: int, number: int, panels: bool) -> None:
        self.run, self.size, self.number, self.panels = run, size, number, panels
        self.steps = 0
        self.words = Words()
        self.pages: list[bytes] = []
        self._known: list[int] = []
        self._waiting: np.ndarray | None = None
        self._placed: list[tuple[np.ndarray, np.ndarray]] = []
        self._pooled: list[tuple[float, float, float]] = []

    def extend(self, trace: Any) -> None:
        """Encode the steps that are new; those before must be the same as last time."""
        first_page = self.steps // self.size
        for page in range(first_page, -(-trace.steps_done // self.size)):
            steps = slice(page * self.size, min((page + 1) * self.size, trace.steps_done))
            del self.pages[page:], self._known[page + 1 :]
            if len(self._known) == page:
                self._known.append(len(self.words.texts))
            self.pages.append(self._encode(trace, steps, self._known[page]))
        self.steps = trace.steps_done

    def _encode(self, trace: Any, steps: slice, known: int) -> bytes:
        facts = {"id": self.number, "first": steps.start, "steps": steps.stop - steps.start}
        columns = self._population(trace, steps)
        if self.panels:
            return pack(facts, columns | self._estimates(trace, steps))
        for name in ("log_increment", "log_psi", "log_p", "log_q"):
            column = array(getattr(trace.columns, name)[self.run])[steps]
            columns[name] = column.astype(np.float32)
        if trace.tables:
            columns |= _tables(trace, self.run, steps)
        while len(self._placed) < steps.stop:
            self._placed.append(self._place(trace, len(self._placed)))
        tokens, next_tokens = zip(*self._placed[steps], strict=True)
        columns["tokens"] = _small(np.concatenate(tokens))
        if trace.tables:
            columns["table_tokens"] = _small(np.concatenate(next_tokens))
        facts |= {
            "known": known,
            "texts": self.words.texts[known:],
            "table_width": int(trace.tables[0].tokens.shape[1]) if trace.tables else 0,
        }
        return pack(facts, columns)

    def _place(self, trace: Any, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the particles' tokens at a step, and of the likeliest next tokens before it."""
        tokens = array(trace.columns.tokens[self.run])[step]
        before = np.zeros(len(tokens), dtype=np.uint32)
        if self._waiting is not None:
            before = self._waiting[array(trace.columns.ancestors[self.run])[step]]
        placed, self._waiting = self.words.place(tokens, before, trace.token_texts)
        if not trace.tables:
            return placed, placed
        table = trace.tables[step]
        used, some = np.unique(array(table.rows)[self.run], return_index=True)
        nexts = array(table.tokens)[used]
        waits = np.repeat(before[some], nexts.shape[1])
        return placed, self.words.place(nexts.reshape(-1), waits, trace.token_texts)[0]

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
        }

    def _estimates(self, trace: Any, steps: slice) -> dict[str, np.ndarray]:
        """Log Z_hat of every run at some steps, and what they say together."""
        every = torch.from_numpy(np.asarray(array(trace.columns.log_z), dtype=np.float64))
        while len(self._pooled) < steps.stop:
            self._pooled.append(_pool(trace, every[:, len(self._pooled)]))
        pooled, low, high = np.array(self._pooled[steps]).T
        return {
            "every_log_z": every[:, steps].T.reshape(-1).numpy(),
            "pooled": pooled,
            "pooled_low": low,
            "pooled_high": high,
        }


def array(column: Any) -> np.ndarray:
    """A column as numpy; it may be a tensor on any device."""
    return column.detach().cpu().numpy() if isinstance(column, torch.Tensor) else np.asarray(column)


def _small(places: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them."""
    return places.astype(np.uint16 if places.max(initial=0) < 2**16 else np.uint32)


def _tables(trace: Any, run: int, steps: slice) -> dict[str, np.ndarray]:
    """Tables of next tokens, one step after the other, of the prefixes that this run has."""
    parts: dict[str, list[np.ndarray]] = {}
    for table in trace.tables[steps]:
        used, rows = np.unique(array(table.rows)[run], return_inverse=True)
        found = {"table_rows": _small(rows.reshape(-1)), "table_sizes": np.uint32([len(used)])}
        for name in ("log_p", "log_q", "log_psi", "log_value"):
            found[f"table_{name}"] = array(getattr(table, name))[used].astype(np.float32)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    joined["table_rows"] = _small(joined["table_rows"])
    return joined


def replicate_facts(trace: Any, replicates: Any = None) -> dict[str, Any] | None:
    """How log Z_hat varies over runs on other noise; None where there is one run only.

    ``spread`` holds the standard deviation over runs after each step, null where a run has died;
    ``pooled``, ``low`` and ``high`` are log Z as all runs together estimate it, and its 95 %
    interval.
    """
    try:
        every = array(trace.columns.log_z if replicates is None else replicates)
        every = every.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"replicates must be log Z_hat, (runs, steps), in nats; got {quoted(replicates)}."
        ) from error
    if every.ndim != 2:
        raise ValueError(f"replicates must have shape (runs, steps); got {every.shape}.")
    if len(every) < 2 or not every.shape[1] or not _one_target(trace):
        return None
    pooled, low, high = _pool(trace, torch.from_numpy(every[:, -1].copy()))
    with np.errstate(invalid="ignore"):
        spread = every.std(0, ddof=1)
    return {
        "runs": len(every),
        "dead": int(np.isneginf(every[:, -1]).sum()),
        "spread": [finite(value) for value in spread],
        "pooled": number(pooled),
        "low": number(low),
        "high": number(high),
    }


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


MAX_SAMPLES = 60
"""Different final texts that are sent; the heaviest come first."""


class Recorder:
    """Encodes runs for a view; of one that has grown since the last call, only what is new.

    Args:
        panels: whether ``RunPanels`` is the view, and not ``ParticleView``.
    """

    def __init__(self, *, panels: bool = False) -> None:
        self._panels = panels
        self._key: tuple | None = None
        self._pages: Pages | None = None
        self._count = 0
        self._factors: tuple[Any, list[dict[str, Any]]] = ((None, None, None), [])

    def encode(
        self,
        trace: Any,
        *,
        exact_log_z: float | int | None = None,
        bracket: Any = None,
        replicates: Any = None,
        run: int = 0,
        target: Any = None,
        run_id: int | None = None,
    ) -> dict[str, Any]:
        """One run of a trace as the view's traits, the header first; no samples before T.

        Args:
            trace: an ``SMCTrace``, finished or not.
            exact_log_z: log Z in nats where it is known.
            bracket: for the panels, a certified bracket of log Z: anything with ``lower`` and
                ``upper``, or a pair of numbers, in nats.
            replicates: log Z_hat (runs, steps) of runs on other noise, this one among them, whose
                spread is its error; None takes the trace's own runs, where they are several.
            run: which of the trace's runs.
            target: what stands beside the prompt; phi in words where it is empty. For the panels,
                the ``Target`` that was sampled: with it the factors of phi are looked at once the
                run is finished.
            run_id: equal numbers say that this is the run of the last call, grown; None is
                another run.
        """
        check_trace(trace)
        count = int(trace.num_runs)
        if check_integer("run", run, at_least=0) >= count:
            raise ValueError(f"run must be one of 0..{count - 1}; got {quoted(run)}.")
        if bracket is not None and not self._panels:
            raise TypeError("bracket is for RunPanels, which draw it: give it to those.")
        if self._panels and target is not None:
            trace.check_target(target)
        elif target is not None:
            check_kind("target", target, str, "a text")
        if exact_log_z is not None:
            check_number("exact_log_z", exact_log_z, "[-inf, inf]")
        ends = None if bracket is None else [number(end) for end in bracket_ends(bracket)]
        pages = self._grow(trace, run, run_id)
        words = "" if self._panels else target
        header = {
            "id": self._count,
            "num_particles": int(trace.num_particles),
            "num_steps": int(trace.num_steps),
            "steps_done": int(trace.steps_done),
            "page_steps": pages.size,
            "run": run,
            "runs": _runs(trace),
            "prompt": str(trace.prompt),
            "target": words or f"φ = {trace.info.potential}",
            "ess_threshold": trace.info.ess_threshold,
            "exact_log_z": None if exact_log_z is None else number(exact_log_z),
            "replicates": replicate_facts(trace, replicates),
        }
        traits = {"header": header}
        for i in range(NUM_PAGES):
            traits[f"page{i}"] = pages.pages[i] if i < len(pages.pages) else b""
        done = trace.steps_done == trace.num_steps
        if not self._panels:
            header |= {
                "facts": list(_facts(trace.info)),
                "verdict": _verdict(trace, run, header["replicates"]) if done else {},
                "has_twist": trace.info.twist is not None,
                "eos": pages.words.find(trace.info.eos_token_id),
            } | _samples(trace, run, pages)
            return traits
        header |= {
            "bracket": ends,
            "ends": trace.info.eos_token_id is not None,
            "conditional": bool(trace.info.conditional),
            "one_target": _one_target(trace),
            "factors": self._breakdown(trace, target, run) if done and target is not None else [],
        }
        return traits | {"samples": final_samples(trace, run, self._count) if done else b""}

    def _grow(self, trace: Any, run: int, run_id: int | None) -> Pages:
        """The pages of a run, new ones unless it is that of the last call, grown."""
        key = (run_id, run, trace.num_particles, trace.num_steps)
        grown = self._pages is not None and self._pages.steps <= trace.steps_done
        if run_id is None or self._key != key or not grown:
            self._count += 1
            self._key = key
            size = max(1, math.ceil(trace.num_steps / NUM_PAGES))
            self._pages = Pages(run, size, self._count, self._panels)
        self._pages.extend(trace)
        return self._pages

    def _breakdown(self, trace: Any, target: Any, run: int) -> list[dict[str, Any]]:
        key = (trace, target, run)
        if any(a is not b for a, b in zip(self._factors[0], key, strict=True)):
            shares = factor_breakdown(trace, target, run=run)
            self._factors = (key, [_portable(share) for share in shares])
        return self._factors[1]


def number(value: Any, digits: int = 17) -> float | str:
    """A number that JSON can hold; JavaScript's ``Number`` reads it back. 17 digits are all."""
    value = float(value)
    if math.isfinite(value):
        return float(f"{value:.{digits}g}")
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def known(value: float | int | None, digits: int = 6) -> float | str | None:
    """A short number for JSON; None where it is missing or NaN."""
    return None if value is None or math.isnan(value) else number(value, digits)


def finite(value: float | int, digits: int = 5) -> float | None:
    """A short number for JSON; None where it is not finite."""
    return number(value, digits) if math.isfinite(value) else None


_LEVELS = {"good": "Good", "fair": "Fair", "poor": "Poor", "open": "Not known yet"}


def _verdict(trace: Any, run: int, replicates: Mapping[str, Any] | None) -> dict[str, str]:
    """What a finished run is worth, in words."""
    spread = None if replicates is None else replicates["spread"][-1]
    found = judge_run(trace, spread=math.nan if spread is None else spread, run=run)
    return {"level": found.level, "text": f"{_LEVELS[found.level]}: {'; '.join(found.reasons)}."}


def _runs(trace: Any) -> list[float | str]:
    """Log Z_hat of every run so far."""
    if not trace.steps_done:
        return [0.0] * int(trace.num_runs)
    return [number(value) for value in array(trace.columns.log_z)[:, -1]]


def _samples(trace: Any, run: int, pages: Pages) -> dict[str, Any]:
    """The heaviest final texts of a finished run, equal ones together."""
    if trace.steps_done < trace.num_steps:
        return {"samples": [], "num_texts": 0}
    found: dict[str, list[int]] = {}
    for slot, text in enumerate(trace.final_texts[run]):
        found.setdefault(text, []).append(slot)
    weights = unpack(pages.pages[-1])[1]["weights"].reshape(-1, trace.num_particles)[-1]
    share = {text: float(weights[slots].sum(dtype=np.float64)) for text, slots in found.items()}
    heaviest = sorted(found, key=lambda text: (-share[text], found[text][0]))[:MAX_SAMPLES]
    # At T the column of log psi holds log phi.
    log_phi = array(trace.columns.log_psi[run])[-1]
    samples = [
        {
            "text": text,
            "copies": len(found[text]),
            "slot": found[text][0],
            "weight": number(share[text]),
            "log_phi": number(log_phi[found[text][0]]),
        }
        for text in heaviest
    ]
    return {"samples": samples, "num_texts": len(found)}


def _facts(info: Any) -> Iterable[str]:
    """How the run was made, a fact a string."""
    yield f"proposal: {info.proposal}"
    yield "no twist (ψ = 1)" if info.twist is None else f"twist: {twist_in_words(info.twist)}"
    if info.rule == "never" or info.ess_threshold == 0:
        yield "no resampling"
    else:
        yield f"{info.resampler} resampling {'when ' if 'ESS' in info.rule else ''}{info.rule}"
    if info.conditional:
        yield "slot 0 holds an exact sample"
    if info.seed is not None:
        yield f"seed {info.seed}"


_TWISTS = {
    "TemperedTwist": "a power of another",
    "PowerRamp": "a ramp of p₀’s power",
    "TreeTwist": "optimal ψ*, enumerated",
    "ChainTwist": "optimal ψ*, of the Markov chain",
    "TableTwist": "table of prefixes",
    "TableHeadTwist": "table that learns",
    "LinearHeadTwist": "linear head",
    "MLPHeadTwist": "MLP head",
    "LoRATwist": "LoRA on the body",
    "BodyTwist": "transformer of its own",
    "ConditionalHeadTwist": "head that reads the observation",
    "ConditionalBodyTwist": "transformer that reads the observation",
}


def twist_in_words(name: str) -> str:
    """What a class of twists is, for a reader: LookAheadTwist is look-ahead."""
    if name in _TWISTS:
        return _TWISTS[name]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix("Twist")).lower() or name


def bracket_ends(bracket: Any) -> tuple[float, float]:
    """Lower and upper end of a bracket, in nats; ValueError for anything that is none."""
    try:
        if isinstance(bracket, Bracket):
            ends = (float(bracket.lower), float(bracket.upper))
        else:
            ends = tuple(map(float, bracket))
    except (TypeError, ValueError, AttributeError):
        ends = ()
    if len(ends) != 2 or not ends[0] <= ends[1]:
        raise ValueError(
            "bracket must have a lower and an upper end in nats, the lower one first: a result of "
            f"bracket_log_z, or a pair of numbers; got {quoted(bracket)}."
        )
    return ends


def final_samples(trace: Any, run: int, identity: int) -> bytes:
    """The distinct final texts of one run, heaviest first, with their numbers in float64.

    Particles with equal tokens stand together: their weights add up.
    """
    ancestors = torch.as_tensor(array(trace.columns.ancestors)[run : run + 1])
    ancestors = ancestors.to(torch.int64)

    def along(name: str) -> np.ndarray:
        values = torch.as_tensor(array(getattr(trace.columns, name))[run : run + 1])
        return paths(ancestors, values)[0].numpy()

    tokens = along("tokens")
    _, first, group = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    last = np.array(array(trace.columns.log_weights)[run, -1], dtype=np.float64)
    weights = numerics.normalise(torch.from_numpy(last)).numpy()
    weight = np.bincount(group.reshape(-1), weights, minlength=len(first))
    order = np.lexsort((first, -weight))
    slots = first[order]
    texts = trace.final_texts[run]
    # At T the column of log psi holds log phi.
    log_phi = array(trace.columns.log_psi)[run, -1]
    columns = {
        "weight": weight[order],
        "log_phi": np.asarray(log_phi, dtype=np.float64)[slots],
        "log_p0": along("log_p").astype(np.float64).sum(1)[slots],
        "copies": np.bincount(group.reshape(-1))[order].astype(np.uint32),
        "slot": slots.astype(np.uint32),
        "ended": _ended(tokens, trace.info.eos_token_id)[slots].astype(np.uint32),
    }
    return pack({"id": identity, "texts": [texts[slot] for slot in slots]}, columns)


def _ended(tokens: np.ndarray, eos: int | None) -> np.ndarray:
    """Step at which each text ended by EOS; 0 where it did not."""
    if eos is None:
        return np.zeros(len(tokens), dtype=np.int64)
    ends = tokens == eos
    return np.where(ends.any(1), ends.argmax(1) + 1, 0)


def _pool(trace: Any, log_z: torch.Tensor) -> tuple[float, float, float]:
    """Pooled estimate over runs with its 95 % interval; NaN where runs have no common target.

    Runs that agree tell nothing of what rarer ones would add: only one end is finite then.
    """
    if not _one_target(trace):
        return (math.nan, math.nan, math.nan)
    pooled = PooledOverRuns.of(log_z, reciprocal=bool(trace.info.conditional))
    low, high = pooled.interval()
    if pooled.unseen:
        low, high = (-math.inf, high) if trace.info.conditional else (low, math.inf)
    return (pooled.value, low, high)


def _one_target(trace: Any) -> bool:
    """Whether all runs estimate one log Z: not where each has an observation of its own."""
    observed = trace.info.observed
    return observed is None or all(each == observed[0] for each in observed)


def _portable(share: FactorShare) -> dict[str, Any]:
    names = ("mean_log_phi", "killed", "killed_alone")
    return {"name": share.name} | {name: number(getattr(share, name)) for name in names}
