"""Diagnosis of a twist: questions with measured thresholds, answered in sentences with numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsmc_widgets.errors import TsmcError, quoted
from tsmc_widgets.evaluation.bellman import NUM_RUNS, BellmanError, bellman_error, centred
from tsmc_widgets.evaluation.estimates import percentiles
from tsmc_widgets.models.protocol import readable
from tsmc_widgets.models.tempered import Tempered

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 400
TEMPERATURES = (0.5, 0.7, 1.4, 2.0)
NAMED_PROMPTS = ("I bought this", "Once upon a time there was a")
"""Prompts of the twists that ship, which are tried where the model can read them."""
THRESHOLDS = {
    "varies": 0.02,
    "flipped": -0.08,
    "within": 0.2,
    "between": 0.4,
    "uninformative": 0.1,
    "jump": 4.0,
    "overconfident": 0.5,
    "underconfident": 2.0,
    "saturated": 0.4,
    "token": 0.6,
    "other p0": 0.15,
    "nearer p0": 0.95,
    "t value": 3.0,
    "prompt": 0.4,
    "consistent": 0.05,
    "unlike": 0.6,
    "sure": 0.1,
}
"""What a defect is beyond. Shares of psi*'s spread: ``varies``. Signed R^2: ``flipped``, ``within``
(siblings), ``between`` (of within), ``uninformative``. Slopes of log psi* on log
psi: ``overconfident``, ``underconfident``. Shares of prefixes: ``saturated``; of mean squared
errors: ``token``, ``other p0``, ``consistent``. Nats of spread that are worth a word: ``sure``."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence of the verdict.

    Attributes:
        code: what it is about, in a word or two.
        text: the sentence.
        evidence: the numbers behind it, with 95 % intervals.
        view: where they are drawn: "where", "tokens", "how" or "what if".
        defect: whether it says that something is wrong.
    """

    code: str
    text: str
    evidence: str
    view: str
    defect: bool = True

    def __str__(self) -> str:
        return f"{self.text} ({self.evidence})"


@dataclass(frozen=True, slots=True)
class Fit:
    """How log psi* goes with log psi over some prefixes, both less the mean of their group.

    Attributes:
        r2: squared correlation with its sign, less what error of rollouts takes from it.
        r2_interval: 95 %, by bootstrap over parents.
        slope: of log psi* on log psi, which is the best power of psi: 1 is right.
        slope_interval: the same.
        psi: standard deviation of log psi, in nats.
        star: of log psi*, less the error of rollouts.
    """

    r2: float
    r2_interval: tuple[float, float]
    slope: float
    slope_interval: tuple[float, float]
    psi: float
    star: float

    @property
    def r2_words(self) -> str:
        """R^2 with its sign and interval."""
        return _words(f"R² {self.r2:.2f}", *self.r2_interval)

    @property
    def slope_words(self) -> str:
        """Best power with its interval."""
        return _words(f"best power of ψ {self.slope:.2f}", *self.slope_interval)


def _words(what: str, low: float, high: float) -> str:
    """Something with its 95 % interval, which is left out where none is known."""
    ends = "" if math.isnan(low) else f", 95 % {low:.2f} to {high:.2f}"
    return f"{what}{ends}".replace("-", "−")


def fit(frame: pd.DataFrame, seed: int = 0) -> Fit:
    """Fit of columns x (log psi), z (log psi*), e (its error) and cluster, all already centred."""
    if not len(frame):
        return Fit(0.0, (0.0, 0.0), 0.0, (0.0, 0.0), 0.0, 0.0)
    clusters = frame["cluster"].to_numpy()
    x, z, e = (frame[name].to_numpy() for name in ("x", "z", "e"))
    names, place = np.unique(clusters, return_inverse=True)
    parts = [x * x, z * z - e * e, x * z]
    sums = np.stack([np.bincount(place, part, len(names)) for part in parts])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), [1 / len(names)] * len(names), RESAMPLES)
    total = sums.sum(1)
    r2, slope = _of_sums(total)
    r2s, slopes = _of_sums(sums @ drawn.T)
    psi, star = np.sqrt(total[:2].clip(0) / len(x)).tolist()
    return Fit(float(r2), percentiles(r2s), float(slope), percentiles(slopes), psi, star)


def _of_sums(sums: np.ndarray) -> tuple[Any, Any]:
    xx, zz, xz = (np.maximum(sums[0], 1e-12), np.maximum(sums[1], 1e-12), sums[2])
    return np.clip(np.sign(xz) * xz**2 / (xx * zz), -1, 1), xz / xx


def fit_within(frame: pd.DataFrame, seed: int = 0) -> Fit:
    """Fit of siblings about the mean of their parent."""
    within = {name: frame[f"{name}_within"] for name in ("x", "z", "e")}
    return fit(frame.assign(**within), seed)


def fit_between(frame: pd.DataFrame, seed: int = 0) -> Fit:
    """Fit of the means of parents about the mean of their step; step 1 has one parent."""
    means = frame[frame["t"] > 1].groupby("parent").agg(
        t=("t", "first"), x=("x", "mean"), z=("z", "mean"),
        e=("e", lambda e: math.sqrt((e**2).sum()) / len(e)),
    )  # fmt: skip
    for name in ("x", "z"):
        means[name] -= means.groupby("t")[name].transform("mean")
    return fit(means.assign(cluster=means.index), seed)


class Diagnosis:
    """Asks one question after another; the first that is answered names the defect.

    Args:
        report: what was measured.
        prompts: on which the twist may have been learned.
        seed: of the bootstrap.
    """

    def __init__(self, report: Any, prompts: Iterable[Any] = (), seed: int = 0) -> None:
        self.report, self.target, self.twist = report, report.target, report.twist
        self.prompts, self.seed = list(prompts), seed
        self.table = report.prefixes
        self.all = fit(self.table, seed)
        self.within, self.between = fit_within(self.table, seed), fit_between(self.table, seed)

    def findings(self) -> list[Finding]:
        """Defects first, then what else is worth knowing."""
        answers = (found for ask in self._questions() if (found := ask()) is not None)
        head = self._recorded() or [next(answers, None) or self._healthy()]
        return [*head, *self._remarks()]

    def _questions(self) -> list[Callable[[], Finding | None]]:
        if self._blind:
            return [self._dead, self._unobservant, self._other_prompt, self._temperature]
        return [
            self._dead, self._unobservant, self._constant, self._other_prompt, self._until,
            self._late, self._prefix_function, self._saturated, self._flipped,
            self._other_potential, self._one_token, self._rare_token, self._temperature,
            self._power, self._unrelated, self._nearer_temperature,
        ]  # fmt: skip

    def _recorded(self) -> list[Finding]:
        """What the twist's card and its model say that it was made for."""
        card = getattr(self.twist, "card", None) or {}
        made = card.get("target") or {}
        target, found = self.target, []
        here = self._bellman_words()
        if made and made["potential"] != target.potential.describe():
            what = f"Learned on another potential, {made['potential']}"
            found.append(Finding("another potential", what, self.all.r2_words, "how"))
        if made and list(made["prompt_tokens"]) != target.prompt_tokens.tolist():
            what = f"Learned on another prompt, {quoted(made['prompt'])}"
            found.append(Finding("another prompt", what, here, "where"))
        own, its = _settings(target.lm), _settings(getattr(self.twist, "lm", target.lm))
        power = made.get("power", 1)
        if own != its or (made and power != target.power):
            what = f"Made for a p₀ at {its or f'power {power:g}'}, and used at " + (
                own or f"power {target.power:g}"
            )
            found.append(Finding("temperature of p0", what, here, "where"))
        return found

    def _bellman_words(self) -> str:
        frame = self.report.bellman.frame
        inner = frame[frame["t"] < self.target.num_steps]
        if inner.empty:
            return "no step before T"
        worst = inner.loc[inner["spread"].idxmax()]
        what = f"Bellman error spreads by {worst['spread']:.2f} nats at step {int(worst['t'])}"
        what = _words(what, worst["spread_low"], worst["spread_high"])
        return f"{what}; 1/T is {worst['bound']:.2f}"

    def _dead(self) -> Finding | None:
        log_phi = self.report.bellman.log_value[:, -1]
        asked = ~log_phi.isnan()
        ends = torch.isfinite(self.report.trace.columns.log_z[:, -1]).any()
        if ends or bool(torch.isfinite(log_phi[asked]).any()) or not len(log_phi[asked]):
            return None
        text = "No sequence has φ > 0, so that nothing can be said of ψ: soften φ, or draw more"
        return Finding("dead target", text, f"of {int(asked.sum())} drawn", "where")

    @property
    def _blind(self) -> bool:
        """Whether psi* hardly varies, so that there is nothing to know."""
        return len(self.table) < 8 or self.all.star < THRESHOLDS["sure"]

    def _unobservant(self) -> Finding | None:
        population = self.report.bellman.population
        if population.observed is None:
            return None
        other = replace(population, observed=population.observed.roll(1, 0))
        again = bellman_error(self.target, self.twist, other, seed=self.seed)
        moved = again.log_psi - self.report.bellman.log_psi
        phi = (again.log_value - self.report.bellman.log_value)[:, -1]
        spread, wanted = _spread(moved[:, :-1]), _spread(phi)
        if spread > THRESHOLDS["varies"] * wanted or wanted < THRESHOLDS["sure"]:
            return None
        return Finding(
            "ignores the observation",
            "Ignores the observation: with another one ψ hardly changes, and φ does",
            f"log ψ moves by {spread:.3f} nats, log φ by {wanted:.2f}", "tokens",
        )  # fmt: skip

    def _constant(self) -> Finding | None:
        if self.all.psi > THRESHOLDS["varies"] * self.all.star:
            return None
        return Finding(
            "constant",
            "Constant: ψ says the same of all prefixes of a step, so it neither leads nor weighs",
            f"log ψ spreads by {self.all.psi:.3f} nats, log ψ* by {self.all.star:.2f}", "how",
        )  # fmt: skip

    def _until(self) -> Finding | None:
        """Consistent up to a step, at which its value breaks with the next; uninformative after."""
        found = self.report.bellman
        errors = of_steps(found.centred**2 - found.value_error**2)
        own = of_steps(centred(found.log_psi) ** 2)
        for last in range(2, self.target.num_steps - 1):
            before, here = max(errors[: last - 1]), errors[last - 1]
            jump = here > max(THRESHOLDS["jump"] * before, own[last - 1] / 2)
            if not jump or here < THRESHOLDS["sure"] ** 2:
                continue
            early = fit(self.table[self.table["t"] <= last], self.seed)
            after = self.table[self.table["t"] > last]
            late, siblings = fit(after, self.seed), fit_within(after, self.seed)
            high = max(late.r2_interval[1], siblings.r2_interval[1])
            most = max(late.r2, siblings.r2)
            if late.star < THRESHOLDS["sure"] or most > THRESHOLDS["uninformative"]:
                continue
            if not THRESHOLDS["uninformative"] < early.r2_interval[0] > min(high, late.r2 + 0.1):
                continue
            flat = late.psi <= THRESHOLDS["varies"] * late.star
            return Finding(
                f"right until step {last}",
                f"Informative until step {last}, then {'constant' if flat else 'unrelated to ψ*'}",
                f"until then {early.r2_words}; after it {late.r2_words}; mean squared Bellman "
                f"error {here:.2f} at the step, at most {before:.2f} before", "how",
            )  # fmt: skip
        return None

    def _late(self) -> Finding | None:
        """Psi of a prefix is that of the prefix before: siblings have one value."""
        if self.within.star < THRESHOLDS["sure"]:
            return None
        one_value = self.within.psi < THRESHOLDS["varies"] * self.all.psi
        if not one_value or self.between.r2_interval[1] < THRESHOLDS["uninformative"]:
            return None
        return Finding(
            "shifted by one step",
            "One step behind: ψ_t says what ψ_{t−1} should, and all next tokens get one value",
            f"siblings spread by {self.within.psi:.3f} nats where ψ* spreads by "
            f"{self.within.star:.2f}; between prefixes {self.between.r2_words}", "tokens",
        )  # fmt: skip

    def _prefix_function(self) -> Finding | None:
        good, bad = self.within, self.between
        if good.r2_interval[0] < THRESHOLDS["within"]:
            return None
        flat = bad.slope_interval[1] < good.slope_interval[0]
        apart = max(bad.r2 / good.r2, bad.slope / good.slope) < THRESHOLDS["between"]
        if not (flat and apart) or bad.star < THRESHOLDS["sure"]:
            return None
        by = f": it was learned by {self.twist.method.upper()}" if self.twist.method else ""
        return Finding(
            "prefix function",
            f"Use it as a proposal only{by}; it ranks the next tokens of a prefix, and its values "
            "mean nothing between prefixes",
            f"among siblings {good.r2_words}; between prefixes {bad.r2_words}", "tokens",
        )  # fmt: skip

    def _saturated(self) -> Finding | None:
        """Many prefixes at one end of psi's range, though psi* differs among them."""
        values = self.table["log_psi"]
        tolerance = 0.01 * float(values.max() - values.min())
        low, high = values <= values.min() + tolerance, values >= values.max() - tolerance
        share, inside = float((low | high).mean()), 0.0
        if share < THRESHOLDS["saturated"] or tolerance == 0:
            return None
        for end in (low, high):
            part = self.table[end]
            # A twist of few values has equal psi at steps of different means: compare within t.
            off = part["z"] - part.groupby("t")["z"].transform("mean")
            freedom = len(part) - part["t"].nunique()
            if freedom > 4:
                square = (float((off**2).sum()) / freedom) - float((part["e"] ** 2).mean())
                inside = max(inside, math.sqrt(max(0.0, square)))
        if inside < 0.4 * self.all.star:
            return None
        return Finding(
            "saturated",
            f"Saturated: ψ is at an end of its range, {values.min():.2f} or {values.max():.2f}, on "
            "most prefixes, among which ψ* differs",
            f"{share:.0%} of {len(values)} prefixes; log ψ* spreads by {inside:.2f} nats there",
            "how",
        )  # fmt: skip

    def _flipped(self) -> Finding | None:
        if self.all.r2_interval[1] > THRESHOLDS["flipped"]:
            return None
        return Finding(
            "flipped sign",
            "Flipped sign: ψ prefers the prefixes that φ will dislike",
            self.all.r2_words, "how",
        )  # fmt: skip

    def _one_token(self) -> Finding | None:
        """One token whose siblings alone are off."""
        table = self.table.assign(r=self.table["x_within"] - self.table["z_within"])
        total = float((table["r"] ** 2 - table["e_within"] ** 2).sum())
        if total / max(1, len(table)) < THRESHOLDS["sure"] ** 2:
            return None
        best = (0.0, -1, 0.0)
        for token in table["token"].unique():
            mark = (table["token"] == token).astype(float)
            if mark.sum() < 4:
                continue
            mark -= mark.groupby(table["parent"]).transform("mean")
            size = float((mark**2).sum())
            gain = float((mark * table["r"]).sum()) / size if size else 0.0
            best = max(best, (gain**2 * size, token, gain))
        explained, token, gain = best
        if explained < THRESHOLDS["token"] * total or abs(gain) < 1:
            return None
        mark = (table["token"] == token).astype(float)
        mark -= mark.groupby(table["t"]).transform("mean")
        repaired = fit(table.assign(x=table["x"] - gain * mark), self.seed)
        if repaired.r2_interval[0] < THRESHOLDS["uninformative"] or repaired.r2 < self.all.r2:
            return None
        share = f"{explained / total:.0%} of the error among siblings"
        return self._but_for(int(token), gain, f"{share}; without it {repaired.r2_words}")

    def _rare_token(self) -> Finding | None:
        """One token, too rare to be among the siblings, after which alone psi breaks."""
        found = self.report.bellman
        squared = found.centred**2 - found.value_error**2
        known = torch.isfinite(squared)
        total = float(squared[known].sum())
        if not total > int(known.sum()) * THRESHOLDS["sure"] ** 2:
            return None
        error, seen = found.centred[known], self.table["token"].value_counts()
        tokens, place, counts = torch.unique(
            found.population.tokens[known], return_inverse=True, return_counts=True
        )
        gains = torch.zeros(len(tokens)).double().index_add_(0, place, error) / counts
        rare = torch.tensor([seen.get(token, 0) < 4 for token in tokens.tolist()])
        explained = torch.where(rare & (counts >= 4), gains**2 * counts, 0.0)
        best = int(explained.argmax())
        if explained[best] < THRESHOLDS["token"] * total or abs(gains[best]) < 1:
            return None
        share = f"{float(explained[best]) / total:.0%} of the squared Bellman error"
        where = f"{share}, at {int(counts[best])} of {int(known.sum())} prefixes"
        return self._but_for(int(tokens[best]), float(gains[best]), where)

    def _but_for(self, token: int, gain: float, explained: str) -> Finding:
        text = self.target.lm.token_text(token)
        return Finding(
            "one token",
            f"Right but for the token {quoted(text)}, which it values by e^{abs(gain):.1f} too "
            f"{'much' if gain > 0 else 'little'}",
            f"this token explains {explained}", "tokens",
        )  # fmt: skip

    def _other_prompt(self) -> Finding | None:
        """Consistent on the sequences of another prompt, and not on those of this one."""
        here = inconsistency(self.report.bellman)
        if not self._inconsistent or math.isnan(here):
            return None
        best, observed = (1.0, ""), self.report.bellman.population.observed
        for prompt in (*self.prompts, *NAMED_PROMPTS):
            with suppress(TsmcError, ValueError, IndexError, RuntimeError):  # It cannot be read.
                other = self.target.with_(prompt=prompt)
                if torch.equal(other.prompt_tokens, self.target.prompt_tokens):
                    continue
                some = None if observed is None else observed[:NUM_RUNS]
                found = bellman_error(other, self.twist, observed=some, seed=self.seed, max_phi=0)
                shown = readable(other.lm, other.prompt_tokens.unsqueeze(0))[0]
                best = min(best, (inconsistency(found) / here, shown))
        ratio, shown = best
        if ratio > THRESHOLDS["prompt"]:
            return None
        return Finding(
            "another prompt", f"Learned on another prompt: ψ fits p₀ after {quoted(shown)}",
            f"there the Bellman error has {100 * ratio * here:.0f} % of the variance of log ψ, "
            f"here {100 * here:.0f} %; {self._bellman_words()}", "where",
        )  # fmt: skip

    @cached_property
    def temperatures(self) -> list[tuple[float, float, float]]:
        """Share of the squared Bellman error that each temperature leaves, its t value, and it.

        The smallest share first; none where there is no Bellman error to speak of.
        """
        base, found = squares(self.report.bellman), []
        for tau in TEMPERATURES if self._inconsistent else ():
            other = self.target.with_(lm=Tempered(self.target.lm, temperature=tau))
            population = self.report.bellman.population
            there = bellman_error(other, self.twist, population, max_phi=0)
            ratio = float(squares(there).mean() / base.mean())
            found.append((ratio, min(_t_values(self.report.bellman, there)), tau))
        return sorted(found)

    @property
    def _inconsistent(self) -> bool:
        """Whether there is a Bellman error before the last two steps that is worth a word."""
        inner = self.target.num_steps - 2
        return inner > 0 and float(squares(self.report.bellman).mean()) > (
            inner * THRESHOLDS["sure"] ** 2 / 4
        )

    def _temperature(self) -> Finding | None:
        """The Bellman equation holds under another temperature.

        That of a power of psi* does as well under a p0 so flat that all prefixes are alike.
        """
        if self.all.r2_interval[0] > THRESHOLDS["unlike"] and self._power() is not None:
            return None
        for ratio, _, tau in self.temperatures[:1]:
            if ratio <= THRESHOLDS["other p0"]:
                return self._other_temperature(tau, ratio)
        return None

    def _nearer_temperature(self) -> Finding | None:
        """It holds better under another temperature, on the same sequences."""
        for ratio, t_value, tau in self.temperatures[:1]:
            if ratio <= THRESHOLDS["nearer p0"] and t_value > THRESHOLDS["t value"]:
                more = f" (t = {t_value:.1f}); a prompt that was not tried can look the same"
                return self._other_temperature(tau, ratio, more)
        return None

    def _other_temperature(self, tau: float, ratio: float, more: str = "") -> Finding:
        return Finding(
            "temperature of p0", f"Temperature of p₀ differs: ψ fits p₀ at temperature {tau:g}",
            f"there the mean squared Bellman error is {ratio:.0%} of what it is here{more}; "
            f"{self._bellman_words()}", "where",
        )  # fmt: skip

    def _power(self) -> Finding | None:
        low, high = self.all.slope_interval
        if low <= 0 or self.all.r2_interval[1] < THRESHOLDS["uninformative"]:
            return None
        evidence = f"{self.all.slope_words}; {self.all.r2_words}"
        if high < THRESHOLDS["overconfident"]:
            code, power = "overconfident", f"{self.all.slope:.2f}"
        elif low > THRESHOLDS["underconfident"]:
            code, power = "underconfident", f"{self.all.slope:.1f}"
        else:
            return None
        text = f"{code.capitalize()}: ψ^{power} would fit ψ* better"
        return Finding(code, text, evidence, "what if")

    def _other_potential(self) -> Finding | None:
        """Consistent with p0 before the last step, and with another phi."""
        if self.all.r2_interval[1] > THRESHOLDS["unlike"]:
            return None
        inner = float(squares(self.report.bellman).mean())
        last = float(squares(self.report.bellman, slice(-2, -1)).mean())
        scale = self.all.psi**2 * max(1, self.target.num_steps - 2)
        if inner > THRESHOLDS["consistent"] * scale or last < self.all.psi**2 / 4:
            return None
        return Finding(
            "another potential",
            "Learned on another potential: ψ is consistent with p₀ from step to step, and not "
            "with φ at the end",
            f"mean squared Bellman error {inner:.3f} before the last step, {last:.2f} at it; "
            f"{self.all.r2_words}", "where",
        )  # fmt: skip

    def _unrelated(self) -> Finding | None:
        if self.all.r2_interval[1] > THRESHOLDS["uninformative"]:
            return None
        return Finding(
            "unrelated", "Unrelated to ψ*: not learned, or for another target",
            self.all.r2_words, "how",
        )  # fmt: skip

    def _healthy(self) -> Finding:
        if self._blind:
            what = f"log ψ* spreads by {self.all.star:.2f} nats over {len(self.table)} prefixes"
            return Finding("nothing to know", "There is next to nothing for ψ to know", what, "how",
                           defect=False)  # fmt: skip
        evidence = f"{self.all.r2_words}; {self.all.slope_words}"
        return Finding("no defect", "No defect found", evidence, "how", defect=False)

    def _remarks(self) -> list[Finding]:
        """Where the variance is, and what a twist that only proposes is good for."""
        found = []
        if self.twist.proposal_only:
            text = f"Learned by {self.twist.method.upper()}: it proposes, and must not weigh"
            found.append(Finding("proposal only", text, "by its method", "how", defect=False))
        frame = self.report.frame
        variance = frame["variance"].fillna(0.0)
        total = float(variance.sum())
        if total < THRESHOLDS["sure"] ** 2:
            return found
        worst = frame.loc[variance.idxmax()]
        t, share = int(worst["t"]), float(variance.max()) / total
        if share >= 0.5:
            text = f"Step {t} carries {share:.0%} of the variance of the log increments"
            what = f"variance {worst['variance']:.2f}"
            what = _words(what, worst["variance_low"], worst["variance_high"])
            about = ("one step costs most", text + self._culprit(t), f"{what}, of {total:.2f}")
            found.append(Finding(*about, "where", defect=False))
        return found

    def _culprit(self, t: int) -> str:
        """A word that is in the texts on which psi_T and phi differ most, if one stands out."""
        if t < self.target.num_steps:
            return ""
        rows = self.report.bellman.prefixes()
        rows = rows[rows["t"] == t] if len(rows) else rows
        if len(rows) < 16:
            return ""
        error, texts = rows["error"].to_numpy(), [set(text.split()) for text in rows["text"]]
        if error.std() < THRESHOLDS["sure"]:
            return ""
        best = (0.0, "")
        for word in set().union(*texts):
            mark = np.array([word in text for text in texts], dtype=float)
            if not 4 <= mark.sum() <= len(mark) - 4:
                continue
            best = max(best, (abs(float(np.corrcoef(mark, error)[0, 1])), word))
        return f": ψ_T and φ disagree on texts with “{best[1]}”" if best[0] > 0.5 else ""


INNER = slice(None, -2)
"""Steps before the last two, whose error needs no phi."""


def squares(found: BellmanError, steps: slice = INNER) -> torch.Tensor:
    """Squared Bellman error of each run, summed over steps, less what sampling phi adds."""
    excess = found.centred[:, steps] ** 2 - found.value_error[:, steps] ** 2
    return excess.nanmean(2).nansum(1)


def _t_values(here: BellmanError, there: BellmanError) -> tuple[float, float]:
    """Student's t of the squared error that another p0 takes away, over runs and over prefixes.

    Where prefixes are few, all runs share their errors, so that only prefixes tell of chance.
    """
    gain = (here.centred**2 - there.centred**2)[:, INNER]
    of_runs = gain.nanmean(2).nansum(1)
    known = torch.isfinite(gain)
    step = torch.arange(gain.shape[1]).view(1, -1, 1).expand_as(gain)[known].double()
    keys = torch.stack([step, here.log_psi[:, INNER][known], here.log_value[:, INNER][known]], 1)
    place, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)[1:]
    gains = torch.zeros(len(counts)).double().scatter_add_(0, place, gain[known] / len(place))
    mean = gains.sum()
    spread = (gains - counts / len(place) * mean).norm()
    runs = of_runs.mean() / (of_runs.std() / math.sqrt(len(of_runs))).clamp(min=1e-12)
    return float(runs), float(mean / spread.clamp(min=1e-12))


def inconsistency(found: BellmanError) -> float:
    """Mean squared Bellman error over the variance of log psi, both within steps.

    NaN where psi is constant or 0, which is consistent with every p0 and says nothing of any.
    """
    variance = sum(of_steps(centred(found.log_psi)[:, INNER] ** 2))
    return float(squares(found).mean()) / variance if variance > 1e-9 else math.nan


def of_steps(values: torch.Tensor) -> list[float]:
    """Mean of each step over what is known."""
    return values.nanmean(dim=(0, 2)).nan_to_num().tolist()


def _spread(values: torch.Tensor) -> float:
    """Standard deviation of what is finite."""
    finite = values[torch.isfinite(values)]
    return float(finite.std()) if len(finite) > 1 else 0.0


def _settings(lm: Any) -> str:
    """Temperature and cuts of a model, in words; empty for a plain one."""
    if not isinstance(lm, Tempered):
        return ""
    return ", ".join(f"{name} {value:g}" for name, value in lm.settings.items())
