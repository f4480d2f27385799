"""Bad inputs, and how each ends: `python dev.py bench faults`.

Every public function and class gets, for each of its arguments, every value of ``VALUES``; what is
made is used once. Each case ends in one of

    ok       accepted where the value fits the signature, or refused by an error of ours that names
             the argument or quotes the value
    unclear  another error: one of torch, NumPy or Python, or one that names neither
    silent   accepted though it does not fit the signature
    hang     no end within the time limit, or the process died

Each public name is tried in a fork of its own, which needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import linecache
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import torch

import tsmc_widgets as tw

SECONDS = 5
OUTCOMES = ("ok", "unclear", "silent", "hang")
VALUES: dict[str, Any] = {
    "None": None, "True": True, "-1": -1, "2.5": 2.5, "nan": math.nan, "inf": math.inf,
    "2**63": 2**63, "'nonsense'": "nonsense", "'\\ud800'": "\ud800", "b'abc'": b"abc",
    "[None]": [None], "{'a': 1}": {"a": 1}, "object()": object(), "np.array(4)": np.array(4),
    "np.array([1, 2])": np.array([1, 2]), "tensor([1., nan])": torch.tensor([1.0, math.nan]),
    "a class": int,
}  # fmt: skip
FREE_TEXT = {"title", "name", "group", "folder", "shared", "reward", "twist_sha256", "words"}
"""Arguments that take any text."""
PAGES = {"CompareSession", "TrainSession", "WatchSMC", "Workbench"}
MADE_BY_OTHERS = {
    "BoundsTable", "Divergences", "LogZ", "LogZBounds", "SMCTrace", "SMCSession", "Potential",
    "TrainableTwist", "PROBLEMS", "TabularLM", "HuggingFaceLM", "ResultTable", "Comparison",
    "map_runs",
}  # fmt: skip
"""What nobody makes by hand, and what takes other people's objects alone."""


@cache
def toy() -> tw.Target:
    """A target that can be enumerated."""
    return tw.load_problem("rainy-week").target()


def judge(texts: list[str]) -> torch.Tensor:
    """A reward of texts."""
    return torch.zeros(len(texts))


@cache
def needed() -> dict[str, Any]:
    """Arguments by their names that make a call valid and short."""
    story = tw.load_language_model("storybook")
    small: dict[str, Any] = {"num_particles": 2, "num_runs": 2, "num_exact": 0, "num_samples": 2}
    samples = tw.exact(toy()).sample(4, 0)
    bounds = tw.log_z_bounds(toy(), num_particles=(1, 2), num_runs=3)
    return {
        "lm": story, "target": toy(), "num_particles": 2, "seed": 0, "rate": 0.1, "num_steps": 3,
        "trace": tw.run_smc(toy(), num_particles=4, num_runs=2), "beta": 2.0, "num_tokens": 1,
        "spec": tw.RunSpec(problem="rainy-week", measures="runs", **small), "num_islands": 2,
        "samples": samples, "retained": samples, "problem": "rainy-week", "observed": "cat",
        "problems": "rainy-week", "methods": "none", "patterns": "cat", "words": "cat",
        "pattern": "cat", "parts": [tw.Constant(), tw.Length(at_most=3)], "reward": judge,
        "function": len, "potential": tw.Constant(), "prompt": "once", "frame": bounds.to_frame(),
        "log_tables": [torch.zeros(3, dtype=torch.float64)], "name_or_folder": "storybook",
        "folder": "one-star-review", "twist": tw.LookAheadTwist(toy()), "num_classes": 2,
        "prefixes": tw.all_prefixes(toy())[1],
    }  # fmt: skip


OWN: dict[str, dict[str, Any]] = {
    "ConditionalHeadTwist": {"num_classes": 2},
    "ConditionalBodyTwist": {"num_classes": 2},
    "CountToken": {"at_least": 1},
    "Length": {"at_most": 3},
    "RewardThreshold": {"at_least": 0.0, "takes": "texts"},
    "TemperedReward": {"takes": "texts"},
    "load_problem": {"name": "rainy-week"},
    "log_z_bounds": {"num_runs": 2},
    "compare": {"seeds": 2, "num_runs": 2, "num_exact": 0, "num_samples": 2, "num_particles": 2},
    "kl_divergences": {"num_samples": 4},
}
UNFIT = {"TableHeadTwist": "lm", "TwistTrainer": "twist", "save_twist": "twist"}


def use(made: Any, lm: Any) -> None:
    """What a potential, a twist or a rule is for."""
    if isinstance(made, tw.Potential) and not made.is_conditional:
        target = tw.Target(lm, made, prompt="once", num_steps=3)
        target.log_phi(torch.zeros(1, 3, dtype=torch.int64))
    elif isinstance(made, tw.SMCConfig):
        tw.SMCSession(toy(), made).run()
    elif isinstance(made, tw.ModelProposal | tw.TwistInduced):
        tw.run_smc(toy(), num_particles=2, proposal=made)


def fits(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether a value may be accepted, as far as the signature says."""
    said = str(parameter.annotation)
    if value is None:
        return "None" in said or parameter.default is None
    if isinstance(value, bool):
        return "bool" in said
    if isinstance(value, str):
        return parameter.name in FREE_TEXT or "Path" in said
    whole = isinstance(value, int) and not isinstance(value, type)
    if whole or (isinstance(value, np.ndarray) and not value.ndim):
        return any(kind in said for kind in ("int", "float", "TokenPattern", "Prompt"))
    if isinstance(value, float):
        return "float" in said and not math.isnan(value)
    if isinstance(value, np.ndarray):
        return any(kind in said for kind in ("Sequence", "Iterable", "TokenPattern", "Prompt"))
    return "Callable" in said and callable(value)


def refused_clearly(error: BaseException, parameter: str, value: Any) -> bool:
    """Whether an error is raised by the package and names the argument or quotes the value."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = "tsmc_widgets" in last.filename
    raised = linecache.getline(last.filename, last.lineno).strip().startswith("raise")
    said = str(error)
    quoted = (
        repr(value)[:40] in said
        or type(value).__name__ in said
        or (isinstance(value, str) and value in said)
    )
    named = parameter in said or parameter.rstrip("s") in said.lower()
    kinds = TypeError | ValueError | OSError | RuntimeError
    return ours and raised and isinstance(error, kinds) and (quoted or named)


def too_long(*_: Any) -> None:
    """End a case."""
    raise TimeoutError("too long")


def try_name(name: str) -> None:
    """Print how each case of a public name ends."""
    function = getattr(tw, name)
    parameters = inspect.signature(function).parameters.values()
    known = needed()
    base = {p.name: known[p.name] for p in parameters if p.default is p.empty and p.name in known}
    base |= OWN.get(name, {})
    if name in UNFIT:
        base["lm"] = toy().lm
        base["twist"] = tw.TableHeadTwist(
            toy().lm, num_steps=toy().num_steps, prompt_length=len(toy().prompt_tokens)
        )
        base = {key: value for key, value in base.items() if key in {p.name for p in parameters}}
    if name == "save_twist":
        base["folder"] = "faults_twist"
    signal.signal(signal.SIGALRM, too_long)
    several = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    try:
        given = dict(base)
        function(*[given.pop(each) for each in several], **given)
    except Exception as error:  # noqa: BLE001 - said
        print(f"{name} is not tried, for it fails by itself: {error}", file=sys.stderr, flush=True)
        return
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for label, value in VALUES.items():
            given = base | {parameter.name: value}
            args = [given.pop(each) for each in several]
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            detail = ""
            try:
                use(function(*args, **given), known["lm"])
                outcome = "ok" if fits(parameter, value) else "silent"
            except TimeoutError as error:
                outcome = "hang" if str(error) == "too long" else "unclear"
            except Exception as error:  # noqa: BLE001 - judged
                clear = refused_clearly(error, parameter.name, value)
                outcome = "ok" if clear else "unclear"
                detail = f"{type(error).__name__}: {str(error)[:90]!r}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            print(f"CASE\t{outcome}\t{name}({parameter.name}={label})\t{detail}", flush=True)


def cases_of(name: str) -> list[list[str]]:
    """Outcome, case and detail of each case, from a fork of this process."""
    with tempfile.TemporaryFile("w+") as found:

        def run() -> None:
            # What a call writes goes where it is removed.
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.chdir(folder),
                contextlib.redirect_stdout(found),
            ):
                try_name(name)

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(60)
        process.kill()
        process.join()
        found.seek(0)
        cases = [line.rstrip("\n").split("\t")[1:] for line in found if line.startswith("CASE")]
    if process.exitcode:
        cases.append(["hang", name, f"the process ended with {process.exitcode}"])
    return cases


def main() -> None:
    """Print what is not ok, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="try one public name, here")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    if chosen.name:
        try_name(chosen.name)
        return
    needed()
    os.chdir(tempfile.mkdtemp())  # Some cases write files.
    totals: Counter[str] = Counter()
    print(f"| public name | {' | '.join(OUTCOMES)} |\n| --- |{' --- |' * len(OUTCOMES)}")
    bad = []
    for name in sorted({*tw.__all__} - MADE_BY_OTHERS - PAGES):  # type: ignore[attr-defined]
        found = cases_of(name)
        counts = Counter(case[0] for case in found)
        totals += counts
        bad += [case for case in found if case[0] != "ok"]
        print(f"| {name} | {' | '.join(str(counts[o]) for o in OUTCOMES)} |", flush=True)
    print(f"| all {totals.total()} | {' | '.join(str(totals[o]) for o in OUTCOMES)} |")
    for case in bad:
        print(*case, file=sys.stderr)


if __name__ == "__main__":
    main()
