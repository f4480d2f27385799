"""The views in Chromium: frames, main-thread time, first paint and latency, beside their limits.

    python benchmarks/frontend.py [--quick] [--no-lab | --only-lab]

Each size is a random run (with next-token tables) in the page that `ParticleView.to_html` writes,
and once more with `RunPanels` of 40 runs below it, in step. Main-thread time is all that the page's
main thread did between the first and the last frame of a scrub through every step, divided by the
frames. Last come a control of `WatchSMC` and one of `Workbench` in a real JupyterLab. Needs
Chromium.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import torch
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import browser_support as support  # noqa: E402
import tsmc_widgets as tw  # noqa: E402
from dev import find_chromium  # noqa: E402

SIZES = ((64, 32), (128, 128), (1000, 64))
VOCABULARY = 400
WIDTHS = (1280, 1920)
LIMIT_MS = {(64, 32): 10.0, (128, 128): 16.0, (1000, 64): 16.0}
RUNS_OF_PANELS = 40

SCRUB = """async frames => {
    const root = document.querySelector('.pv');
    const range = root.querySelector('input[type=range]');
    const T = Number(range.max);
    const frame = () => new Promise(requestAnimationFrame);
    const draws = [];
    await frame();
    const start = performance.now();
    for (let i = 0; i < frames; i++) {
        const place = i % (2 * T);
        range.value = place <= T ? T - place : place - T;
        range.dispatchEvent(new Event('input', { bubbles: true }));
        await frame();
        draws.push(root._stats.ms);
    }
    return { seconds: (performance.now() - start) / 1000, draws };
}"""
KEY_TO_FRAME = """async presses => {
    const root = document.querySelector('.pv');
    const frame = () => new Promise(requestAnimationFrame);
    const channel = new MessageChannel();
    const painted = () => new Promise(done => {
        channel.port1.onmessage = done;
        channel.port2.postMessage(0);
    });
    const times = [];
    for (let i = 0; i < presses; i++) {
        await frame();
        const start = performance.now();
        const key = i % 8 < 4 ? 'ArrowLeft' : 'ArrowRight';
        root.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
        await frame();
        await painted();
        times.push(performance.now() - start);
    }
    return times;
}"""
FIRST_PAINT = """() => {
    const paints = performance.getEntriesByType('paint');
    return paints.find(paint => paint.name === 'first-contentful-paint').startTime;
}"""


def symbols() -> list[str]:
    """Words of one to nine letters, as long as those of a text."""
    letters = "etaoinshrdlu"
    return [
        f"{letters[i % 12] * (1 + (i * 7) % 5)}{i}"[: 1 + (i * 5) % 9] + chr(0x100 + i)
        for i in range(VOCABULARY)
    ]


def random_run(size: tuple[int, int], *, num_runs: int = 1, top_k: int = 8) -> tw.SMCTrace:
    """Runs that resample often, over a random Markov chain with a random twist."""
    num_particles, num_steps = size
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    rows = logits.softmax(1).double()
    rows = rows / rows.sum(1, keepdim=True)
    names = symbols()
    lm = tw.TabularLM.markov(rows[0].tolist(), rows.tolist(), symbols=names, separator=" ")
    target = tw.Target(lm, tw.Constant(), prompt=names[0], num_steps=num_steps)
    return tw.run_smc(
        target,
        num_particles=num_particles,
        twist=Ramp(VOCABULARY),
        num_runs=num_runs,
        ess_threshold=0.5,
        top_k=top_k,
        seed=1,
    )


class Ramp:
    """Psi by the last token alone: enough to make weights differ and particles resample."""

    def __init__(self, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.log_psi_of = 0.7 * torch.randn(vocab_size, generator=generator)

    def prefill(self, tokens: Any, base: Any = None) -> Any:
        """Log psi of every next token."""
        from tsmc_widgets.twists.protocol import TwistStep

        return TwistStep(self.log_psi_of.expand(len(tokens), -1), None)

    def advance(self, tokens: Any, carry: Any, base: Any = None) -> Any:
        """The same one step on."""
        return self.prefill(tokens)

    def log_psi(self, tokens: Any, prompt_length: int, base: Any = None) -> Any:
        """Log psi of each prefix."""
        return self.log_psi_of[tokens[:, prompt_length:]]


class MainThread:
    """The main thread's clock of a page: seconds worked, by DevTools."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)
        # CPU time, so that other work on the machine does not count.
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})

    @property
    def seconds(self) -> float:
        """Seconds worked so far."""
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in metrics if each["name"] == "TaskDuration")


def measure(browser: Browser, file: Path, frames: int, width: int) -> dict[str, float]:
    """Open a page and scrub through it."""
    context = browser.new_context(bypass_csp=True, viewport={"width": width, "height": 1100})
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector(".pv-row", state="attached")
    first_paint = page.evaluate(FIRST_PAINT)
    page.evaluate(SCRUB, 20)
    thread = MainThread(page)
    before = thread.seconds
    scrub = page.evaluate(SCRUB, frames)
    busy = thread.seconds - before
    latencies = page.evaluate(KEY_TO_FRAME, 40)
    context.close()
    return {
        "frames": frames / scrub["seconds"],
        "busy": 1000 * busy / frames,
        "draw": statistics.median(scrub["draws"]),
        "draw95": statistics.quantiles(scrub["draws"], n=20)[-1],
        "latency": statistics.median(latencies),
        "latency95": statistics.quantiles(latencies, n=20)[-1],
        "paint": first_paint,
    }


REVIEWS = {
    "name": "reviews",
    "model": "storybook",
    "prompt": "I bought this",
    "num_steps": 24,
    "eos": "absorb",
    "potential": [
        {"kind": "ClassProbability", "model": "storybook/stars", "label": "5 stars", "beta": 8.0}
    ],
}
PAGES = {
    "WatchSMC": (
        'tw.WatchSMC(prompt="I bought this", stars=5, star_beta=8.0, num_particles=64, '
        "num_steps=24)",
        ".widget-slider:has-text('stars β')",
        150.0,
    ),
    "Workbench": (
        f"tw.Workbench({REVIEWS}, num_particles=64)", ".tw-factor .widget-slider", 150.0,
    ),
    "Workbench, smollm2": (
        "tw.Workbench('happy-review', num_particles=32)", ".tw-factor .widget-slider", 600.0,
    ),
}  # fmt: skip
"""A cell, the slider that is moved, and the most milliseconds to the new run's first column."""
CONTROL_TO_FRAME = """async () => {
    const root = document.querySelector('.pv');
    const view = root._view;
    const old = view.record.id;
    const start = performance.now();
    globalThis.measured = new Promise(done => {
        const look = () => view.record.id !== old && root._stats.steps > 0 && root._stats.t > 0
            ? done(performance.now() - start) : requestAnimationFrame(look);
        look();
    });
}"""


def lab_latency(browser: Browser, made: str, slider: str, presses: int) -> list[float]:
    """Milliseconds from a key on a slider of a live page to the first frame of its new run."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "notebooks"
        folder.mkdir()
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(f"import tsmc_widgets as tw\n{made}")],
            metadata={"kernelspec": kernel},
        )
        nbformat.write(notebook, folder / "latency.ipynb")
        with support.jupyter_lab(Path(home), folder) as url:
            page = browser.new_page(viewport={"width": 1600, "height": 1400})
            page.set_default_timeout(120_000)
            page.goto(f"{url}/lab/tree/latency.ipynb?reset")
            page.wait_for_function("globalThis.jupyterapp !== undefined")
            page.evaluate("jupyterapp.restored.then(() => null)")
            page.wait_for_function(support.NOTEBOOK_SHOWN, arg="latency.ipynb")
            page.wait_for_function(support.KERNEL_IDLE)
            support.run_all_cells(page)
            page.wait_for_selector('.pv-status[data-state="done"]')
            page.locator(slider).first.get_by_role("slider").first.focus()
            times = []
            for press in range(presses):
                page.evaluate(CONTROL_TO_FRAME)
                page.keyboard.press("ArrowLeft" if press % 8 < 4 else "ArrowRight")
                times.append(page.evaluate("globalThis.measured"))
                page.wait_for_selector('.pv-status[data-state="done"]')
            page.close()
    return times


def write_pages(size: tuple[int, int], folder: Path) -> dict[str, Path]:
    """The particle view of one run alone, and that of one of 40 with the panels of all."""
    alone = tw.ParticleView(random_run(size)).to_html(folder / f"{size[0]}.html")
    trace = random_run(size, num_runs=RUNS_OF_PANELS, top_k=0)
    panels = tw.RunPanels(trace, exact_log_z=0.0)
    both = panels.to_html(folder / f"{size[0]}_panels.html", view=tw.ParticleView(trace))
    return {"": alone, "panels": both}


def verdict(milliseconds: float, limit: float) -> str:
    """A time beside its limit."""
    return f"{milliseconds:.1f} ms ({'at most' if milliseconds <= limit else 'OVER'} {limit:.0f})"


def report_sizes(browser: Browser, folder: Path, frames: int) -> None:
    """Print a line for each size, with and without panels, and width of the window."""
    print(
        f"{'K x T':<19}{'width':>5}{'file':>9}{'first paint':>13}{'frames/s':>10}"
        f"{'main thread a frame':>25}{'draw (p95)':>18}{'key to frame (p95)':>20}"
    )
    for size in SIZES:
        for what, file in write_pages(size, folder).items():
            for width in WIDTHS:
                found = measure(browser, file, frames, width)
                print(
                    f"{f'{size[0]} x {size[1]} {what}':<19}{width:>5}"
                    f"{file.stat().st_size / 1e6:>6.1f} MB{found['paint']:>10.0f} ms"
                    f"{found['frames']:>10.0f}{verdict(found['busy'], LIMIT_MS[size]):>25}"
                    f"{found['draw']:>7.1f} ({found['draw95']:.1f}) ms"
                    f"{found['latency']:>12.0f} ({found['latency95']:.0f}) ms",
                    flush=True,
                )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer frames")
    parser.add_argument("--no-lab", action="store_true", help="leave JupyterLab out")
    parser.add_argument("--only-lab", action="store_true", help="measure JupyterLab alone")
    arguments = parser.parse_args()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{os.cpu_count()} cores; load over 1, 5 and 15 minutes before: {load}")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=support.CHROMIUM_FLAGS
        )
        if not arguments.only_lab:
            report_sizes(browser, Path(folder), 60 if arguments.quick else 240)
        if not arguments.no_lab:
            for name, (made, slider, limit) in PAGES.items():
                times = lab_latency(browser, made, slider, 12 if arguments.quick else 32)
                p95 = statistics.quantiles(times, n=20)[-1]
                print(
                    f"{name} in JupyterLab, control moved to first frame of the new run: "
                    f"{verdict(statistics.median(times), limit)}, p95 {p95:.0f} ms",
                    flush=True,
                )
        browser.close()


if __name__ == "__main__":
    main()
