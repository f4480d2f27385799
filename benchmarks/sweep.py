"""SMC sweeps against the bare KV-cache sampling loop, in one process: ratios, not seconds.

    python benchmarks/sweep.py [--quick]

The baseline is what a careful user would write with transformers alone: the prompt is prefilled
once and its cache expanded to K rows, each step is one forward call and one multinomial draw.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import tsmc_widgets as tw
from tsmc_widgets.models.huggingface import HuggingFaceLM
from tsmc_widgets.targets.target import prompt_ids


class Scored:
    """A potential that costs nothing: the sweep is what is measured."""

    def log_phi(self, tokens: torch.Tensor) -> torch.Tensor:
        """Favour small token ids."""
        return -(tokens.double() % 7).mean(-1)


@torch.no_grad()
def bare_loop(model: Any, prompt: torch.Tensor, num_particles: int, num_steps: int) -> None:
    """Sample K continuations of T tokens."""
    out = model(prompt.unsqueeze(0), use_cache=True, past_key_values=DynamicCache())
    cache = out.past_key_values
    cache.batch_repeat_interleave(num_particles)
    logits = out.logits[:, -1].expand(num_particles, -1)
    for t in range(num_steps):
        tokens = torch.multinomial(torch.softmax(logits.float(), dim=-1), 1)
        if t + 1 < num_steps:
            out = model(tokens, use_cache=True, past_key_values=cache)
            logits = out.logits[:, -1]


def interleaved(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each job, run in turn."""
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def random_gpt2() -> HuggingFaceLM:
    """The model of case (a): 4 layers of 128 with 2,000 tokens, random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2000, n_embd=128, n_layer=4, n_head=4, n_positions=256,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    words = {f"w{i}": i for i in range(2000)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), unk_token="w0"
    )
    return HuggingFaceLM(GPT2LMHeadModel(config).eval(), tokenizer)


def sweeps(lm: Any, prompt: Any, num_particles: int, num_steps: int) -> Callable[[], tw.SMCTrace]:
    """A function that runs SMC once, with other noise in each call."""
    target = tw.Target(lm, Scored(), prompt=prompt, num_steps=num_steps)
    seeds = itertools.count()
    return lambda: tw.run_smc(target, num_particles=num_particles, seed=next(seeds))


def bare(lm: Any, prompt: Any, num_particles: int, num_steps: int) -> Callable[[], None]:
    """A function that samples as many sequences with transformers alone."""
    tokens = prompt_ids(lm, prompt)
    return lambda: bare_loop(lm.model, tokens, num_particles, num_steps)


def compare(lm: Any, prompt: Any, num_particles: int, num_steps: int, repeats: int) -> None:
    """Print the ratio of a sweep to the bare loop."""
    size = (lm, prompt, num_particles, num_steps)
    sweep = sweeps(*size)
    times = interleaved({"bare": bare(*size), "smc": sweep}, repeats)
    distinct = sweep().columns.distinct.double().mean()
    print(
        f"  K={num_particles:5d} T={num_steps:3d}  bare {1e3 * times['bare']:8.1f} ms  "
        f"smc {1e3 * times['smc']:8.1f} ms  ratio {times['smc'] / times['bare']:5.2f}  "
        f"distinct prefixes a step {distinct:7.1f}"
    )


def growth(lm: Any, prompt: Any, repeats: int) -> None:
    """Print how time grows with T and with K."""
    sizes = {"T": (128, 32), "2T": (128, 64), "4K": (512, 32)}
    jobs = {name: sweeps(lm, prompt, *size) for name, size in sizes.items()}
    times = interleaved(jobs, repeats)
    print(f"  time(T=64)/time(T=32) at K=128: {times['2T'] / times['T']:.2f}")
    print(f"  time(K=512)/time(K=128) at T=32: {times['4K'] / times['T']:.2f}")


def most_resident() -> int:
    """Largest resident size in bytes, where that of getrusage begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def peak_of_sweep(num_particles: int) -> int:
    """Peak of this process's memory after a sweep of model (a), in bytes."""
    sweeps(random_gpt2(), [5], num_particles, 32)()
    return most_resident()


def memory() -> None:
    """Print memory per particle: the growth of a process's peak with K, and what is kept."""
    peaks = {size: in_new_process(peak_of_sweep, size) for size in (512, 2048)}
    session = tw.start_smc(
        tw.Target(random_gpt2(), Scored(), prompt=[5], num_steps=32), num_particles=512
    )
    for _ in range(31):
        session.step()
    steps = session.state.steps
    cache: Any = steps.lm.carry
    held = (cache.nbytes + steps.lm.log_probs.nbytes) / 512
    columns = session.trace.columns
    record = sum(getattr(columns, name).nbytes for name in columns.__dataclass_fields__) / 512
    peak = (peaks[2048] - peaks[512]) / (2048 - 512)
    print(
        f"  at T=32: {peak / 1024:.0f} KiB of peak memory a particle; caches and tables hold "
        f"{held / 1024:.0f} KiB of it, the record {record / 1024:.1f} KiB"
    )


def toy(repeats: int) -> None:
    """Print the seconds of 40,000 runs of a toy target in one batch."""
    lm = tw.TabularLM.random(3, 4, seed=0)
    target = tw.Target(lm, Scored(), prompt="", num_steps=4)
    seeds = itertools.count()

    def runs() -> object:
        return tw.run_smc(target, num_particles=4, num_runs=40_000, seed=next(seeds)).log_z

    times = interleaved({"toy": runs}, repeats)
    print(f"  40,000 runs of V=3, T=4, K=4 in one batch: {times['toy']:.2f} s")


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, small cases only")
    quick = parser.parse_args().quick
    repeats = 3 if quick else 9
    sizes = (8, 128) if quick else (8, 32, 128, 512)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("(a) random GPT-2 4x128, V=2000")
    lm = random_gpt2()
    for num_particles in sizes:
        for num_steps in (32,) if quick else (32, 64):
            compare(lm, [5], num_particles, num_steps, repeats)
    growth(lm, [5], repeats)
    memory()
    print("(b) storybook")
    story = tw.load_language_model("storybook")
    for num_particles in sizes:
        for num_steps in (20,) if quick else (20, 32, 64):
            compare(story, "Once upon a time there was a", num_particles, num_steps, repeats)
    if not quick:
        compare(story, "Once upon a time there was a", 4096, 20, 3)
    growth(story, "Once upon a time there was a", repeats)
    print("(c) toy")
    toy(repeats)


if __name__ == "__main__":
    main()
