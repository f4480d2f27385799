"""What the browser gets of a twist's report: charts, texts with gains, and tables, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tsmc_widgets.evaluation.estimates import frame_of
from tsmc_widgets.evaluation.siblings import Family, rollout_texts
from tsmc_widgets.evaluation.twist_report import TwistReport
from tsmc_widgets.evaluation.what_if import Fork, best_power

NUM_WORST = 8
NUM_TEXTS = 6
WHERE = {
    "bellman": ("Bellman error, nats", "Spread of log ψ_t − log E ψ_{t+1}; below 1/T cost is fine"),
    "variance": ("variance of log increments, nats²", "What the step adds to the weights' spread"),
    "ess": ("ESS / K", "Effective sample size after the step"),
    "ancestors": ("surviving ancestors / K", "Particles of the step with a descendant at T"),
    "kl": ("KL(σ_t‖π_t), nats", "How far the twisted target of the step is from σ's marginal"),
}
HOW = {
    "r2": ("R² of log ψ* on log ψ", "With its sign, less the error of rollouts; 1 is right"),
    "slope": ("slope: best power of ψ", "Below 1 ψ is overconfident, above 1 underconfident"),
    "rank_correlation": ("rank correlation", "Spearman's, within the step"),
}
POWER = {
    "lower": ("log Z, nats", "Mean of log Ẑ, a lower bound; and an upper bound where one is known"),
    "spread": ("spread of log Ẑ, nats", "Over runs; the best a has the least"),
    "ess": ("ESS / K", "After the last step"),
    "accepted": ("share with φ > 0", "Of the sequences drawn"),
}


def encode(
    report: TwistReport,
    *,
    powers: Sequence[Mapping[str, Any]],
    fork: Fork | None,
    rollouts: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """All that the view shows.

    Args:
        report: as far as it has come.
        powers: rows of ``power_sweep`` so far.
        fork: the newest fork, if there is one.
        rollouts: texts of some rollouts, by the prefix that they end.
    """
    other = report.against
    tables = [("ψ", report.frame)] + ([] if other is None else [("against", other.frame)])
    bound = [{"value": 1 / report.target.num_steps, "name": "1/T"}]
    charts = {
        "where": [
            _chart(name, words, tables, bound if name == "bellman" else [])
            for name, words in WHERE.items()
            if name in report.frame
        ],
        "how": [
            _chart(name, words, tables, [{"value": 1.0, "name": "right"}])
            for name, words in HOW.items()
            if name in report.frame
        ],
        "what if": _power_charts(powers),
    }
    table = report.prefixes
    return {
        "heading": _heading(report),
        "verdict": [_sentence(finding) for finding in report.findings]
        + ([] if other is None else [_sentence(f, "Against: ") for f in other.findings]),
        "charts": charts,
        "points": [[int(t), *map(_finite, (x, z, e))] for t, x, z, e in _rows(table, "txze")],
        "texts": _texts(report),
        "worst": _worst(report, rollouts),
        "fork": None if fork is None else _fork(fork),
    }


def _rows(table: Any, names: Sequence[str]) -> Any:
    return table[list(names)].itertuples(index=False) if len(table) else ()


def _finite(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _heading(report: TwistReport) -> dict[str, Any]:
    trace = report.trace
    facts = [
        f"twist {report.twist.form}",
        f"{trace.num_runs} runs of {trace.num_particles} particles",
        f"{len(report.prefixes)} prefixes with log ψ*",
    ]
    return {
        "prompt": trace.prompt, "target": f"φ = {report.target.potential.describe()}",
        "facts": facts,
    }  # fmt: skip


def _sentence(finding: Any, before: str = "") -> dict[str, Any]:
    return {
        "text": f"{before}{finding.text}.", "evidence": finding.evidence, "view": finding.view,
        "defect": finding.defect,
    }  # fmt: skip


def _chart(
    name: str, words: tuple[str, str], tables: Sequence[tuple[str, Any]], levels: list
) -> dict[str, Any]:
    lines = [_line(who, table, name, "t") for who, table in tables if name in table]
    title, meaning = words
    return {
        "name": name, "title": title, "meaning": meaning, "over": "step", "lines": lines,
        "levels": levels,
    }  # fmt: skip


def _line(who: str, table: Any, name: str, over: str) -> dict[str, Any]:
    table = table[table[name].notna()]
    columns = {"x": over, "y": name, "low": f"{name}_low", "high": f"{name}_high"}
    values = {
        k: [_finite(v) for v in table[column]] for k, column in columns.items() if column in table
    }
    # An enumerated divergence is both its ends.
    is_exact = name == "kl" and bool((table["kl_low"] == table["kl_high"]).all())
    return {"who": who, "exact": is_exact} | values


def _power_charts(powers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if len(powers) < 2:
        return []
    frame = frame_of(list(powers))
    best = _finite(best_power(frame))
    charts = []
    for name, (title, meaning) in POWER.items():
        lines = [_line("lower" if name == "lower" else "ψ^a", frame, name, "power")]
        levels = []
        if name == "lower" and "upper" in frame:
            lines.append(_line("upper", frame, "upper", "power"))
        if name == "lower" and "exact" in frame:
            levels = [{"value": _finite(frame["exact"].iloc[0]), "name": "log Z"}]
        charts.append({
            "name": name, "title": title, "meaning": meaning, "over": "power", "lines": lines,
            "levels": levels, "mark": best,
        })  # fmt: skip
    return charts


def _texts(report: TwistReport) -> list[dict[str, Any]]:
    """Some particles' texts with the gain of each token, and the true one where it is known."""
    known = _known_stars(report.families)
    found, population = report.bellman, report.bellman.population
    runs, _, size = population.tokens.shape
    places = [(run, particle) for run in range(runs) for particle in range(size)]
    every = max(1, len(places) // NUM_TEXTS)
    texts = []
    for run, particle in places[::every][:NUM_TEXTS]:
        tokens = population.prefix(run, report.target.num_steps, particle)
        row = torch.tensor([tokens], device=report.target.lm.device)
        log_psi = found.along(found.log_psi)[run, particle].tolist()
        marks = []
        for t, token in enumerate(tokens, start=1):
            own = _finite(log_psi[t - 1] - log_psi[t - 2]) if t > 1 else None
            star, error = _true_gain(known, tokens, t)
            gap = None if own is None or star is None else own - star
            text = report.target.lm.token_text(token)
            marks.append({"t": t, "text": text, "gain": own, "star": star, "gap": gap,
                          "error": error})  # fmt: skip
        texts.append({"name": report.target.labels(row)[0][:60], "tokens": marks})
    return texts


def _known_stars(families: Sequence[Family]) -> dict[tuple[int, ...], tuple[float, float]]:
    known = {}
    for family in families:
        flat = family.tokens.flatten(0, 1).tolist()
        values = zip(family.log_star.flatten().tolist(), family.error.flatten().tolist(),
                     strict=True)  # fmt: skip
        known |= dict(zip(map(tuple, flat), values, strict=True))
    return known


def _true_gain(
    known: Mapping[tuple[int, ...], tuple[float, float]], tokens: Sequence[int], t: int
) -> tuple[float | None, float]:
    now, before = known.get(tuple(tokens[:t])), known.get(tuple(tokens[: t - 1]))
    if now is None or before is None:
        return None, 0.0
    return _finite(now[0] - before[0]), math.hypot(now[1], before[1])


def worst_prefixes(report: TwistReport) -> Any:
    """The table's rows at which psi is most wrong, worst first."""
    order = report.prefixes["error"].abs().sort_values(ascending=False, kind="stable").index
    return report.prefixes.loc[order].drop_duplicates("text").head(NUM_WORST)


def _worst(report: TwistReport, rollouts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    worst = worst_prefixes(report).to_dict("records") if len(report.prefixes) else []
    return [
        {
            "t": int(row["t"]), "text": row["text"], "log_psi": _finite(row["log_psi"]),
            "star": _with_error(row["log_star"], row["log_star_error"]),
            "error": _finite(row["error"]),
            "cost": f"{100 * row['ess_cost']:.1f} %".replace("-", "−"),
            "rollouts": list(rollouts.get(row["text"], ())),
        }
        for row in worst
    ]  # fmt: skip


def _with_error(value: float, error: float) -> str:
    if not math.isfinite(value):
        return "−∞" if value < 0 else "unknown"
    ends = f" ± {1.96 * error:.2f}" if error else ""
    return f"{value:.2f}{ends}".replace("-", "−")


def _fork(fork: Fork) -> dict[str, Any]:
    rows = [
        [
            row["text"], row["chosen"], *(_with_error(row[n], 0.0) for n in
                                          ("log_p", "log_psi", "log_q")),
            _with_error(row["log_star"], row["log_star_error"]),
        ]
        for row in fork.table.to_dict("records")
    ]  # fmt: skip
    text = f"Next tokens of particle {fork.particle} at step {fork.t}, in nats."
    return {"rows": rows, "text": text}


def texts_of_rollouts(report: TwistReport, row: Mapping[str, Any], seed: int) -> list[str]:
    """Some texts that p0 ends a prefix of the table with, and log phi of each."""
    for family in report.families:
        if family.t != row["t"]:
            continue
        texts = report.target.labels(family.tokens.flatten(0, 1).to(report.target.lm.device))
        if row["text"] in texts:
            begun = family.tokens.flatten(0, 1)[texts.index(row["text"])]
            return rollout_texts(report.target, begun, family, seed=seed)
    return []
