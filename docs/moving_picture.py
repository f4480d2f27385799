"""Make the README's moving picture: a run of the particle view, played step by step in Chromium.

    python docs/moving_picture.py

The run is real, of SmolLM2-135M, and the page is the one that ``ParticleView.to_html`` writes.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import browser_support as support
import tsmc_widgets as tw
from dev import find_chromium

PICTURE = ROOT / "docs" / "images" / "run.png"
SIZE = {"width": 1180, "height": 880}
COLOURS = 128


def run(num_runs: int) -> tw.SMCTrace:
    """Happy reviews, by SmolLM2-135M with the twist that ships."""
    target = tw.load_problem("happy-review").target()
    twist = tw.load_twist("happy-review", target.lm)
    return tw.run_smc(target, twist=twist, num_particles=24, num_runs=num_runs, seed=0, top_k=6)


def frames(path: Path, steps: int) -> list[Image.Image]:
    """A picture of each step of a page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=support.CHROMIUM_FLAGS
        )
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce")
        page.goto(path.as_uri())
        page.get_by_role("button", name="Rewind to the prompt").click()
        found = []
        for step in range(steps + 1):
            page.get_by_text(f"step {step} of {steps}", exact=True).first.wait_for()
            page.mouse.move(0, 0)
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            page.wait_for_timeout(150)
            found.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
            page.get_by_role("button", name="One step on").click()
        browser.close()
    return found


def main() -> None:
    """Run, play, write."""
    trace = run(1)
    with tempfile.TemporaryDirectory() as folder:
        view = tw.ParticleView(trace, replicates=run(8).columns.log_z)
        path = view.to_html(Path(folder) / "run.html")
        pictures = frames(path, trace.num_steps)
    # One palette for all, of a step amid the run and the last one, so that no colour drifts.
    both = Image.new("RGB", (SIZE["width"], 2 * SIZE["height"]))
    both.paste(pictures[len(pictures) // 2], (0, 0))
    both.paste(pictures[-1], (0, SIZE["height"]))
    palette = both.quantize(COLOURS, dither=Image.Dither.NONE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    waits = [1200, *[450] * (len(small) - 2), 3500]
    first, *rest = small
    first.save(PICTURE, save_all=True, append_images=rest, duration=waits, loop=0, optimize=True)
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size // 1000} kB\n")


if __name__ == "__main__":
    main()
