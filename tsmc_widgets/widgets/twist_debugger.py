"""The page on which a twist is debugged: verdict first, then where, which tokens, how, what if."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import torch

from tsmc_widgets.errors import TsmcError, check_integer
from tsmc_widgets.evaluation.estimates import frame_of
from tsmc_widgets.evaluation.twist_report import (
    NUM_RUNS,
    ROLLOUTS,
    Family,
    Stages,
    TwistReport,
    check_measured,
    fill_in,
    read_again,
    rollout_texts,
    with_kl,
)
from tsmc_widgets.evaluation.what_if import Fork, best_power, fork, power_rows
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.smc.api import SMCSession
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import TIED_FROM
from tsmc_widgets.widgets.controls import close_whole, table
from tsmc_widgets.widgets.front_end import DebugView, Part, write_page
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.record import finite
from tsmc_widgets.widgets.session import LivePage, Progress, Steps, error_text

FEW_PARTICLES = 4
BUDGET = 200_000
"""Tokens of rollouts."""
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


_finite = partial(finite, digits=17)


class DebugRun(Steps):
    """A report in the making, one instrument or one step's rollouts at a time.

    Attributes:
        report: as far as it has come.
        powers: rows of the sweep over powers of psi.
        rollouts: texts of rollouts of the worst prefixes.
        doing: what is measured next.
        spent: tokens of rollouts so far.
    """

    def __init__(
        self, target: Target, twist: Any, against: Any, *, trace: SMCTrace | None, seed: int,
        budget: Callable[[], int], prompts: list[Any],
    ) -> None:  # fmt: skip
        self.target, self.seed, self.prompts = target, seed, prompts
        self._twist, self._against, self._trace, self._budget = twist, against, trace, budget
        self.report: TwistReport | None = None
        self.powers: list[dict[str, Any]] = []
        self.rollouts: dict[str, list[str]] = {}
        self.doing, self.spent, self.rolled = "running the twist", 0, ROLLOUTS
        super().__init__(self._stages(), self)

    def roll_out_more(self) -> None:
        """Double the rollouts of each prefix, and measure what follows from them again."""
        self.rolled, self.spent, self.done = 2 * self.rolled, 0, False
        self._steps = self._with_rollouts()

    def _stages(self) -> Iterator[None]:
        observed = None
        if self.target.is_conditional and self._trace is None:
            drawn = self.target.exact_samples(NUM_RUNS, seed=self.seed, progress=False)
            observed = drawn.observed
        options: dict[str, Any] = {"seed": self.seed, "observed": observed}
        if self._trace is None and self.target.lm.vocab_size >= TIED_FROM:
            # A first view within seconds of what takes minutes on a real model.
            few = Stages(self.target, self._twist, num_particles=FEW_PARTICLES, **options)
            self.report, self.doing = few.report([], diagnosed=False), "running more particles"
            yield
        self._own = Stages(self.target, self._twist, trace=self._trace, **options)
        self.report = self._own.report([], diagnosed=False)
        self.doing = "rolling out ψ*"
        yield
        self._other = None
        if self._against is not None:
            self._other = Stages(self.target, self._against, **options)
        yield from self._with_rollouts()
        self.doing = "powers of ψ"
        if not self.target.is_conditional and not self._own.twist.proposal_only:
            with suppress(TsmcError):
                for row in power_rows(self.target, self._own.twist, seed=self.seed):
                    self.powers.append(row)
                    yield

    def _with_rollouts(self) -> Iterator[None]:
        families: list[Family] = []
        for family in fill_in(
            self.target, self._own.families, rollouts=self.rolled, seed=self.seed
        ):
            families.append(family)
            self.report = self._own.report(families, diagnosed=False)
            if bool((family.error > 0).any()):
                left = self.target.num_steps - family.t
                self.spent += family.log_psi.numel() * self.rolled * left
            yield
            if self.spent >= self._budget():
                break
        self.doing = "verdict"
        report = self._own.report(families, self.prompts)
        if self._other is not None:
            again = [read_again(self.target, f, self._other.twist) for f in families]
            report = replace(report, against=self._other.report(again, self.prompts))
        self.report = report
        yield
        self.doing = "KL(σ_t‖π_t)"
        self.report = report = with_kl(report, self.seed)
        yield
        self.doing = "rollouts of the worst prefixes"
        for row in worst_prefixes(report).to_dict("records") if len(report.prefixes) else []:
            self.rollouts[row["text"]] = texts_of_rollouts(report, row, self.seed)
        yield


class TwistDebugger(LivePage):
    """See where a twist is wrong, which token shows it, and what it costs.

    Shown as the last line of a cell. The verdict comes first, each sentence with its numbers and
    with the view that draws them; views move together, and a click on a step shows its particles.
    All is measured in a background thread; rollouts stream in, and can be paused. ``report`` is
    the same as an object, see ``tw.twist_report``.

    Args:
        target: sigma.
        twist: psi, of any form.
        against: another twist, drawn beside the first.
        trace: several runs of the target under the twist; None makes them.
        seed: of runs, prefixes and rollouts.
        budget: tokens of rollouts at most; changed on the page.
        prompts: prompts on which the twist may have been learned.
    """

    _subject = "measuring"
    _raises = True

    def __init__(
        self,
        target: Target,
        twist: Any,
        against: Any = None,
        *,
        trace: SMCTrace | None = None,
        seed: int = 0,
        budget: int = BUDGET,
        prompts: Iterable[Any] = (),
    ) -> None:
        twists = [twist] if against is None else [twist, against]
        prompts, seed = check_measured(target, twists, trace, prompts, seed)
        budget = check_integer("budget", budget)
        super().__init__(DebugView(budget=budget))
        self.target, self.seed = target, seed
        self.view.group = f"debug {self.model_id}"
        self.particles = ParticleView()
        self.particles.group = self.view.group
        self.forks = ipw.Box([], layout={"flex_flow": "row wrap", "width": "100%"})
        self.fork: Fork | None = None
        self._shown: Any = None
        self.children = [self.view, self.particles, self.forks]
        self.view.observe(self._press, "ask")
        self.run = DebugRun(
            target, twist, against, trace=trace, seed=seed, budget=lambda: self.view.budget,
            prompts=prompts,
        )  # fmt: skip
        self._submit(lambda: self.run, rest=0.0)

    @classmethod
    def from_run(cls, run: RunSpec | SMCSession, against: Any = None, **options: Any) -> Any:
        """Debug the twist of a run, on its problem, with its particles and noise.

        Args:
            run: a ``RunSpec``, or the session of a run, such as a page's ``session``.
            against: another twist.
            **options: as for the debugger.

        Raises:
            ValueError: the run has no twist.
        """
        session = start_spec(run) if isinstance(run, RunSpec) else run
        config = session.config
        twist = config.twist if config.twist is not None else config.proposal.twist
        if twist is None:
            raise ValueError(
                "this run has no twist to debug: choose one, such as look-ahead or a shipped one."
            )
        runs, trace = max(NUM_RUNS, config.num_runs), None
        if config.observed is None and config.retained is None:
            noise = replace(config.noise, num_runs=runs)
            more = replace(config, num_runs=runs, noise=noise, dead_runs="keep", top_k=8)
            trace = SMCSession(session.target, more).run()
        options = {"seed": getattr(config.noise, "seed", 0), **options}
        return cls(session.target, twist, against, trace=trace, **options)

    @property
    def report(self) -> TwistReport | None:
        """What was measured so far."""
        return self.run.report

    @property
    def _actions(self) -> dict[str, Callable[[], Any]]:
        return {"start": self.start, "pause": self.live.pause, "fork": self._fork}

    def start(self) -> None:
        """Go on; once all is measured, with twice the rollouts."""
        if self.live.progress.state in ("running", "paused"):
            self.live.resume()
            return
        if self.run.done:
            self.run.roll_out_more()
        self._submit(lambda: self.run, rest=0.0)

    def fork_at(self, particle: int, t: int, token: int | str) -> Fork:
        """Force a token, an id or a text, on a particle at a step; both futures are shown."""
        if isinstance(token, str):
            ids = list(self.target.lm.encode(token))
            if len(ids) != 1:
                raise ValueError(f"token must be one token; {token!r} is {len(ids)} tokens.")
            token = ids[0]
        trace = self.report.trace
        made = fork(
            self.target, self.report.twist, particle=particle, t=t, token=int(token),
            num_particles=trace.num_particles, seed=self.seed, run=self.particles.run,
        )  # fmt: skip
        close_whole(*self.forks.children)
        views = []
        for name, each in (("as it went", made.before), ("with the token forced", made.after)):
            view = ParticleView(each, target=name)
            view.group = self.view.group
            view.layout.flex, view.layout.min_width = "1 1 480px", "0"
            view.status = {"state": "done", "text": name}
            views.append(view)
        self.forks.children = views
        self.fork = made
        self._put_data()
        return made

    def _fork(self) -> None:
        asked = self.view.ask
        self.fork_at(int(asked["particle"]), self.view.step, str(asked["text"]))

    def _show(self, progress: Progress) -> None:
        if self.run.report is not None:
            trace = self.run.report.trace
            if self.particles.trace is not trace:
                self.particles.update(trace, target=self.target.potential.describe())
            self._put_data()
        self._show_status(progress)

    def _put_data(self) -> None:
        self.view.data = encode(
            self.run.report, powers=self.run.powers, fork=self.fork, rollouts=self.run.rollouts
        )

    def _show_status(self, progress: Progress) -> None:
        doing = self.run.doing if progress.state in ("running", "paused") else ""
        spent = f"{self.run.spent:,} tokens of rollouts" if self.run.spent else ""
        words = {"done": "done", "failed": "stopped", "cancelled": "stopped"}
        parts = [words.get(progress.state, doing), spent, f"{progress.seconds:.1f} s"]
        self.view.status = {
            "state": progress.state,
            "text": ", ".join(part for part in parts if part),
            "error": self._refusal or error_text(progress.error, "What was measured stays."),
        }

    def still(self) -> str:
        """The verdict."""
        findings = [] if self.report is None else self.report.findings
        return table(("verdict", "evidence"), [(f.text, f.evidence) for f in findings])

    def to_html(self, path: str | Path, *, title: str = "") -> Path:
        """Write one file that shows all views on any machine, without kernel and network."""
        if self.report is None:
            raise ValueError("nothing has been measured yet: wait for the first view.")
        particles = self.particles.part(group="page")
        state = {"data": self.view.data, "group": "page", "step": self.view.step}
        view = Part(self.view._esm, self.view._css, {run: {} for run in particles.runs}, state)
        # A fork is of one run, and stands beside each of the page's.
        forks = [each.part(group="page") for each in self.forks.children]
        forks = [replace(f, runs=dict.fromkeys(particles.runs, f.runs[0])) for f in forks]
        parts = [view, particles, *forks]
        return write_page(path, title=title, parts=parts, run=self.particles.run)


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
