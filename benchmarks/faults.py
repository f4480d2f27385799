"""Bad inputs, and how each ends: `python dev.py bench faults`.

Every public function and class gets, for each of its arguments, every value of ``VALUES``; what is
made is used once. Each case ends in one of

    ok       accepted where the value fits the signature, or refused by an error of ours that names
             the argument or quotes the value
    unclear  another error: one of torch, NumPy or Python, or one that names neither
    silent   accepted though it does not fit the signature
    lost     an event (``fault_events``) after which something is missing that was promised
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
from collections.abc import Callable
from functools import cache, partial
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd
import torch

import tsmc_widgets as tw
from benchmarks.fault_events import EVENTS, Event
from tsmc_widgets.evaluation.run_quality import profiles
from tsmc_widgets.targets.grammar import FormalLanguage

SECONDS = 10
"""Of the process itself, for one case: a busy machine is no fault."""
MOST_SECONDS = 600
"""For all cases of one name."""
OUTCOMES = ("ok", "unclear", "silent", "lost", "hang")
VALUES: dict[str, Any] = {
    "None": None, "True": True, "-1": -1, "2.5": 2.5, "nan": math.nan, "inf": math.inf,
    "2**63": 2**63, "'nonsense'": "nonsense", "'\\ud800'": "\ud800", "b'abc'": b"abc",
    "[None]": [None], "{'a': 1}": {"a": 1}, "object()": object(), "np.array(4)": np.array(4),
    "np.array([1, 2])": np.array([1, 2]), "tensor([1., nan])": torch.tensor([1.0, math.nan]),
    "a class": int,
}  # fmt: skip
TEXTS = ("'nonsense'", "'\\ud800'")
LEGAL: dict[str, tuple[str, ...]] = {
    # Any text: a title, a label, a name that is made with it, a pattern.
    **dict.fromkeys(("title", "name", "group", "folder", "shared", "twist_sha256"), TEXTS),
    **dict.fromkeys(("words", "pattern", "reward", "separator"), TEXTS),
    # None is the base model, as for run_smc.
    "SMCConfig.proposal": ("None",),
    # In a list it is the rule that None is by itself.
    "log_z_bounds.rule": ("[None]",),
    # Any number in nats is log Z as somebody may know it.
    "log_z": ("-1", "2.5", "2**63"),
    # A pair of numbers in nats, the lower one first.
    "bracket": ("np.array([1, 2])",),
    # Any number may be an answer, right or wrong.
    "answer": ("-1", "2.5", "inf", "2**63"),
    # JSON's types, which null is one of.
    "history": ("[None]",),
    # Mappings: keys that JSON Schema does not know are ignored; any number has a name.
    "schema": ("{'a': 1}",),
    "statistics": ("{'a': 1}",),
    # No words, as the empty text.
    "ParticleView.target": (*TEXTS, "None"),
    # A class can be called: it is the one function that factors may name.
    "functions": ("a class",),
}
"""Values that are what they look like where the signature does not say so: by argument."""
PAGES = ("CompareSession", "TrainSession", "TwistDebugger", "WatchSMC", "Workbench")
MADE_BY_OTHERS = {
    "BoundsTable",
    "Divergences",
    "LogZ",
    "LogZBounds",
    "SMCTrace",
    "Potential",
    "TrainableTwist",
    "PROBLEMS", "TabularLM",
}  # fmt: skip
"""What nobody makes by hand: results of calls, a base class, a protocol, a table, and a class that
has constructors with names."""
CONSTRUCTORS = ("TabularLM.markov", "TabularLM.from_tables", "TabularLM.random")


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
    tw.register_function(judge)
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
        "function": len, "potential": tw.Constant(), "prompt": "the", "frame": bounds.to_frame(),
        "log_tables": [torch.zeros(3, dtype=torch.float64)], "name_or_folder": "storybook",
        "folder": "one-star-review", "twist": tw.LookAheadTwist(toy()), "num_classes": 2,
        "prefixes": tw.all_prefixes(toy())[1], "name": "judge", "grammar": 'start: "a"',
        "schema": {"type": "integer"}, "model": "storybook/stars", "label": 1,
        "config": tw.SMCConfig(num_particles=2),
    }  # fmt: skip


@cache
def own() -> dict[str, dict[str, Any]]:
    """Arguments that are of one name's own."""
    trace, samples = needed()["trace"], needed()["samples"]
    table = tw.log_z_bounds(toy(), num_particles=(1, 2), num_runs=3, exact_samples=samples)
    joint = tw.load_problem("one-token-infilling").target()
    few = {"num_runs": 2, "num_exact": 0, "num_samples": 2, "num_particles": 2}
    scatter = pd.DataFrame({"t": [1, 2], "learned": [0.1, 0.2], "optimal": [0.1, 0.3], "text": "a"})
    divergences = tw.kl_divergences(toy(), num_samples=4, log_z=0.0, exact_samples=samples)
    calibration = pd.DataFrame({"t": [1, 2], "r2": [0.9, 0.8], "slope": [1.0, 0.9]})
    powers = pd.DataFrame({"power": [0.5, 1.0], "lower": [-2.0, -1.0], "spread": [0.3, 0.2]})
    gains = pd.DataFrame({"t": [1], "token_text": "a", "gain": [0.1], "true_gain": [0.2]})
    ends = {"kl_low": 0.4, "kl_high": 0.6, "reward_low": -3.0, "reward_high": -1.0}
    return {
        "ConditionalHeadTwist": {"num_classes": 2},
        "ConditionalBodyTwist": {"num_classes": 2},
        "CountToken": {"at_least": 1},
        "Length": {"at_most": 3},
        "RewardThreshold": {"at_least": 0.0, "takes": "texts"},
        "TemperedReward": {"takes": "texts"},
        "TokenFunction": {"takes": "row"},
        "ModelProposal": {"lm": toy().lm},
        "ParticleView": {"trace": trace},
        "RunPanels": {"trace": trace},
        "load_problem": {"name": "rainy-week"},
        "load_classifier": {"name_or_folder": "storybook/stars"},
        "Comparison": {"problems": "rainy-week", "methods": "none"},
        "map_runs": {"specs": [needed()["spec"]]},
        "log_z_bounds": {"num_runs": 2},
        "log_z_bounds_given": {"target": joint, "samples": joint.exact_samples(2, seed=0)},
        "compare": {"seeds": 2, **few},
        "kl_divergences": {"num_samples": 4},
        "calibration_figure": {"frame": calibration},
        "default_twist": {"model": needed()["lm"]},
        "gains_figure": {"frame": gains},
        "power_figure": {"frame": powers},
        "where_figure": {"frame": pd.DataFrame({"t": [1, 2], "bellman": [0.1, 0.2], "bound": 0.5})},
        "frontier_figure": {"frame": pd.DataFrame({"kl": [0.5], "reward": [-2.0], **ends})},
        "gap_figure": {"frame": table.gap_frame()},
        "kl_forest_figure": {"frame": divergences.to_frame(), "label": "divergence"},
        "log_z_histogram": {"frame": table.runs_frame()},
        "profiles_figure": {"frame": profiles(trace)},
        "psi_scatter": {"frame": scatter},
        "check": {"exercise": "1.1"},
        "HuggingFaceLM": {"model": needed()["lm"].model, "tokenizer": needed()["lm"].tokenizer},
        "TabularLM.markov": {"initial": [0.5, 0.5], "transition": [[0.5, 0.5]] * 2},
        "TabularLM.from_tables": {"tables": [torch.tensor([0.5, 0.5])]},
        "TabularLM.random": {"vocab_size": 2, "num_steps": 2},
        "Workbench": {"shown": "rainy-week"},
        "TrainSession": {"problem": "rainy-week"},
        "CompareSession": {"problems": "rainy-week", "methods": "none", "folder": None},
    }


UNFIT = {"TableHeadTwist": "lm", "TwistTrainer": "twist", "save_twist": "twist"}


def use(made: Any, lm: Any) -> None:
    """What a potential, a twist or a rule is for."""
    if isinstance(made, FormalLanguage):
        return  # It needs the tokenizer of a larger model.
    if isinstance(made, tw.Potential) and not made.is_conditional:
        target = tw.Target(lm, made, prompt="the", num_steps=3)
        target.log_phi(torch.zeros(1, 3, dtype=torch.int64))
    elif isinstance(made, tuple(getattr(tw, name) for name in PAGES)):
        page: Any = made
        page.close()
    elif isinstance(made, tw.SMCConfig):
        tw.SMCSession(toy(), made).run()
    elif isinstance(made, contextlib.AbstractContextManager):
        with made:
            pass
    elif isinstance(made, tw.ModelProposal | tw.TwistInduced):
        tw.run_smc(toy(), num_particles=2, proposal=made)


def fits(name: str, parameter: inspect.Parameter, label: str) -> bool:
    """Whether a value may be accepted, as far as the signature says, or ``LEGAL`` does."""
    value, said = VALUES[label], str(parameter.annotation)
    if label in (*LEGAL.get(parameter.name, ()), *LEGAL.get(f"{name}.{parameter.name}", ())):
        return True
    if value is None:
        return "None" in said or parameter.default is None
    if isinstance(value, bool):
        return "bool" in said
    if isinstance(value, str):
        return "Path" in said
    whole = isinstance(value, int) and not isinstance(value, type)
    if whole or (isinstance(value, np.ndarray) and not value.ndim):
        kinds = ("int", "float", "TokenPattern", "Prompt", "SupportsIndex")
        return any(kind in said for kind in kinds)
    if isinstance(value, float):
        return "float" in said and not math.isnan(value)
    if isinstance(value, np.ndarray):
        return any(kind in said for kind in ("Sequence", "Iterable", "TokenPattern", "Prompt"))
    return "Callable" in said and callable(value)


def refused_clearly(error: BaseException, parameter: inspect.Parameter, value: Any) -> bool:
    """Whether an error is raised by the package and names the argument or quotes the value.

    What a function raises that was handed over is the caller's own.
    """
    if callable(value) and any(k in str(parameter.annotation) for k in ("Callable", "RewardLike")):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = "tsmc_widgets" in last.filename
    raised = linecache.getline(last.filename, last.lineno).strip().startswith("raise")
    said, name = str(error), parameter.name
    inside = value if isinstance(value, list | dict) else [value]
    quoted = any(
        repr(each)[:40] in said
        or type(each).__name__ in said
        or (isinstance(each, str | np.ndarray) and str(each) in said)
        for each in (value, *inside)
    )
    named = name in said or name.rstrip("s") in said.lower()
    kinds = TypeError | ValueError | OSError | RuntimeError | MemoryError
    return ours and raised and isinstance(error, kinds) and (quoted or named)


def too_long(*_: Any) -> None:
    """End a case."""
    raise TimeoutError("too long")


def try_name(name: str) -> None:
    """Print how each case of a public name ends."""
    function = attrgetter(name)(tw)
    parameters = inspect.signature(function).parameters.values()
    known = needed()
    base = {p.name: known[p.name] for p in parameters if p.default is p.empty and p.name in known}
    base |= own().get(name, {})
    if name in UNFIT:
        base["lm"] = toy().lm
        base["twist"] = tw.TableHeadTwist(
            toy().lm, num_steps=toy().num_steps, prompt_length=len(toy().prompt_tokens)
        )
        base = {key: value for key, value in base.items() if key in {p.name for p in parameters}}
    if name == "save_twist":
        base["folder"] = "faults_twist"
    signal.signal(signal.SIGPROF, too_long)
    several = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    try:
        given = dict(base)
        function(*[given.pop(each) for each in several], **given)
    except Exception as error:  # noqa: BLE001 - said
        print(f"CASE\tunclear\t{name}\tnot tried, for it fails by itself: {error}", flush=True)
        return
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for label, value in VALUES.items():
            given = base | {parameter.name: value}
            args = [given.pop(each) for each in several]
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            detail = ""
            try:
                use(function(*args, **given), known["lm"])
                outcome = "ok" if fits(name, parameter, label) else "silent"
            except TimeoutError as error:
                outcome = "hang" if str(error) == "too long" else "unclear"
            except Exception as error:  # noqa: BLE001 - judged
                clear = refused_clearly(error, parameter, value)
                outcome = "ok" if clear else "unclear"
                detail = f"{type(error).__name__}: {str(error)[:90]!r}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            print(f"CASE\t{outcome}\t{name}({parameter.name}={label})\t{detail}", flush=True)


def try_event(event: Event) -> None:
    """Print how an event ends."""
    outcome, detail = "ok", ""
    try:
        event()
    except AssertionError as error:
        outcome, detail = "lost", str(error)
    except Exception as error:  # noqa: BLE001 - judged
        outcome, detail = "unclear", f"{type(error).__name__}: {error}"
    print(f"CASE\t{outcome}\t{event.__name__}\t{detail}", flush=True)


def cases_of(name: str, tried: Callable[[], None]) -> list[list[str]]:
    """Outcome, case and detail of each case, from a fork of this process."""
    with tempfile.TemporaryFile("w+") as found:

        def run() -> None:
            # What a call writes goes where it is removed.
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.chdir(folder),
                contextlib.redirect_stdout(found),
            ):
                tried()

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(MOST_SECONDS)
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
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # A fork waits for ever on threads that it has not got, so torch must never start any.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_NUM_THREADS": "1"})
    warnings.simplefilter("ignore")
    if chosen.name:
        try_name(chosen.name)
        return
    needed()
    os.chdir(tempfile.mkdtemp())  # Some cases write files.
    totals: Counter[str] = Counter()
    print(f"| public name or event | {' | '.join(OUTCOMES)} |\n| --- |{' --- |' * len(OUTCOMES)}")
    bad = []
    names = sorted({*tw.__all__, *CONSTRUCTORS} - MADE_BY_OTHERS)  # type: ignore[attr-defined]
    tries = {name: partial(try_name, name) for name in names}
    tries |= {event.__name__: partial(try_event, event) for event in EVENTS}
    for name, tried in tries.items():
        found = cases_of(name, tried)
        counts = Counter(case[0] for case in found)
        totals += counts
        bad += [case for case in found if case[0] != "ok"]
        print(f"| {name} | {' | '.join(str(counts[o]) for o in OUTCOMES)} |", flush=True)
    print(f"| all {totals.total()} | {' | '.join(str(totals[o]) for o in OUTCOMES)} |")
    for case in bad:
        print(*case, file=sys.stderr)


if __name__ == "__main__":
    main()
