"""The site builds without a network, and its check finds links that lead nowhere."""

import os
import subprocess
import sys

import pytest

from docs import build


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_builds():
    done = subprocess.run(
        [sys.executable, str(build.DOCS / "build.py")],
        cwd=build.ROOT,
        env=os.environ | {"PYTHONPATH": str(build.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index", "try", "reference", "course/01_what_you_ask_for", "changelog"):
        assert (build.SITE / f"{page}.html").is_file()
    reference = (build.SITE / "reference.html").read_text(encoding="utf-8")
    assert 'id="tsmc_widgets.run_smc"' in reference


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="one"><a href="b.html#two">fine</a><a href="#one">fine</a><a href="b.html#x">1</a>'
        '<a href="c.html">2</a><a href="https://example.org/#y">not ours</a><img src="d.png">'
    )
    (tmp_path / "b.html").write_text('<h2 id="two"></h2>')
    found = build.broken_links(tmp_path)
    assert [line.partition(" (")[0] for line in found] == [
        "a.html: b.html#x",
        "a.html: c.html",
        "a.html: d.png",
    ]
