"""Speed and memory of SMC on a real model, smollm2, each figure beside what it is to reach.

    python benchmarks/real.py

Times are ratios of medians of interleaved runs in one process. Memory is the growth of a process's
peak over what it held before, beside what keys and values of all particles take by themselves.
Where the package genlm-control is installed, its SMC is timed too, with its defaults.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import tsmc_widgets as tw
from benchmarks.sweep import bare, in_new_process, interleaved, most_resident, sweeps

PROMPT = "Once upon a time there was a"
GB = 1e9

Figure = tuple[str, str, str]
"""What it is, its value, and what it is to reach."""


def products(lm: Any, _prompt: str, num_particles: int, num_steps: int) -> Callable[[], object]:
    """A function that multiplies every weight matrix with as many rows as a sweep does: the floor.

    It is bound by the bandwidth to read the weights, or by the arithmetic.
    """
    linear = [each.weight for each in lm.model.modules() if isinstance(each, torch.nn.Linear)]
    rows = {w.shape[1]: torch.randn(num_particles, w.shape[1]).to(w.dtype) for w in linear}

    @torch.no_grad()
    def multiply() -> None:
        for _, weight in itertools.product(range(num_steps), linear):
            torch.nn.functional.linear(rows[weight.shape[1]], weight)

    return multiply


def peer(lm: Any, prompt: str, num_particles: int, num_steps: int) -> Callable[[], object]:
    """A function that runs genlm-control's SMC once, with nothing remembered of a run before."""
    from genlm.control import PromptedLLM, direct_token_sampler

    folder, options = lm.model.config._name_or_path, {"torch_dtype": lm.dtype}
    llm = PromptedLLM.from_name(folder, backend="hf", hf_opts=options)
    llm.prompt_ids = lm.encode(prompt)
    sampler = direct_token_sampler(llm)

    def run() -> None:
        llm.model.clear_cache()
        asyncio.run(sampler.smc(num_particles, ess_threshold=0.5, max_tokens=num_steps))

    return run


def speed(lm: Any) -> Iterator[Figure]:
    """A sweep of smollm2 beside the bare loop and beside its matrix products."""
    known = importlib.util.find_spec("genlm") is not None
    kinds = (sweeps, bare, products, *((peer,) if known else ()))
    jobs = {job.__name__: job(lm, PROMPT, 64, 16) for job in kinds}
    times = interleaved(jobs, repeats=5)
    about = f"smollm2, {str(lm.dtype)[6:]}, K = 64, T = 16: "
    sweep, loop, floor = (times[job.__name__] for job in kinds[:3])
    yield f"{about}sweep / bare loop", f"{sweep / loop:.2f} ({sweep:.1f} s)", "0.4"
    yield f"{about}sweep / matrix products", f"{sweep / floor:.1f}", "3"
    if known:
        yield f"{about}genlm-control / sweep", f"{times['peer'] / sweep:.1f}", "(12)"


def growth(lm: Any) -> Iterator[Figure]:
    """How the time of a sweep of storybook grows, and a small one beside the bare loop."""
    sizes = [*((K, 20) for K in (64, 128, 512, 1024, 2048, 4096)), (64, 40), (1024, 40)]
    times = interleaved({f"{K} {T}": sweeps(lm, PROMPT, K, T) for K, T in sizes}, repeats=5)
    for size in (64, 512, 2048):
        ratio = times[f"{2 * size} 20"] / times[f"{size} 20"]
        yield f"storybook, T = 20: time(K = {2 * size}) / time(K = {size})", f"{ratio:.2f}", "2.1"
    for size in (64, 1024):
        ratio = times[f"{size} 40"] / times[f"{size} 20"]
        yield f"storybook, K = {size}: time(T = 40) / time(T = 20)", f"{ratio:.2f}", "2.1"
    jobs = {job.__name__: job(lm, PROMPT, 8, 20) for job in (sweeps, bare)}
    times = interleaved(jobs, repeats=25)
    ratio = times["sweeps"] / times["bare"]
    yield "storybook, K = 8, T = 20: sweep / bare loop", f"{ratio:.2f}", "1.15"


def peak_of_sweep(num_particles: int, num_steps: int) -> tuple[float, float, float]:
    """Peak of this process in bytes, its growth in a sweep of smollm2, and the KV cache's size."""
    lm = tw.load_language_model("smollm2")
    sweeps(lm, PROMPT, 4, 2)()
    before = most_resident()
    sweeps(lm, PROMPT, num_particles, num_steps)()
    peak = most_resident()
    carry: Any = lm.prefill(torch.tensor([lm.encode(PROMPT)])).carry
    pairs = [carry.layer(index) for index in range(len(carry.store.windows))]
    read = num_particles * (carry.length + num_steps - 1) / carry.length
    return peak, peak - before, read * sum(part.nbytes for pair in pairs for part in pair)


def memory() -> Iterator[Figure]:
    """Peak memory, in a process of its own for each size."""
    for num_particles, num_steps in ((1024, 8), (4096, 16)):
        peak, grown, cache = in_new_process(peak_of_sweep, num_particles, num_steps)
        about = f"smollm2, K = {num_particles}, T = {num_steps}: "
        value, most = f"{grown / GB:.2f} / {cache / GB:.2f} GB", (1.3 * cache + 0.5 * GB) / GB
        yield f"{about}peak / KV cache", f"{value} = {grown / cache:.1f}", f"{most:.2f} GB"
        if num_particles == 4096:
            yield f"{about}peak of the process", f"{peak / GB:.1f} GB", "5 GB"


def figures() -> Iterator[Figure]:
    """Every figure, memory first: a new process takes over the peak of what starts it."""
    yield from memory()
    yield from speed(tw.load_language_model("smollm2"))
    yield from growth(tw.load_language_model("storybook"))


def main() -> None:
    """Print a line for each figure as it is known."""
    print(f"{'':62} {'measured':>22} {'at most':>8}", flush=True)
    for name, value, target in figures():
        print(f"{name:62} {value:>22} {target:>8}", flush=True)


if __name__ == "__main__":
    main()
