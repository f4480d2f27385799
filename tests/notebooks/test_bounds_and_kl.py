"""The lesson on bounds: its saved outputs read well, it runs alone, a person stops and goes on."""

import re

import pytest
from notebook_support import (
    NOTEBOOKS,
    check_saved_outputs,
    first_live_cell,
    outputs,
    printed,
    run_notebook,
)

from browser_support import run_all_cells

NOTEBOOK = NOTEBOOKS / "06_bounds_and_kl.ipynb"
VIEW = "document.querySelector('.cm')"
STATE = "document.querySelector('.pv-status').dataset.state"


def intervals(text, what):
    """Method and interval of each printed line about something."""
    found = re.findall(rf"(\w+): {re.escape(what)} is \S+ \[(\S+), (\S+)\]", text)
    return {method: (float(low), float(high)) for method, low, high in found}


def check_numbers(notebook):
    """The two ways to the gap agree, and the toy's bounds stand beside the exact value."""
    text = printed(notebook)
    gap = intervals(text, "gap at K = 1")
    kl = intervals(text, "KL(q||σ) + KL(σ||q)")
    assert set(gap) == set(kl) == {"none", "shipped"}
    for method, (low, high) in gap.items():
        assert low < kl[method][1]
        assert kl[method][0] < high
    assert "misses a kind: KL(σ||q) = 1.57 nats, KL(q||σ) = 0.62 nats" in text
    assert any("-1.652" in o.data.get("text/plain", "") for o in outputs(notebook) if "data" in o)


def test_saved_outputs_read_well_without_a_kernel():
    notebook = check_saved_outputs(NOTEBOOK)
    check_numbers(notebook)
    pictures = [o for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3


@pytest.mark.slow
def test_notebook_runs_without_a_person(tmp_path):
    smaller = [("(1, 4, 16, 64)", "(1, 4)"), ("seeds=3", "seeds=2"), ("num_runs=40", "num_runs=20")]
    notebook = run_notebook(NOTEBOOK, tmp_path, replace=smaller)
    check_numbers(notebook)
    told = [o.data.get("text/markdown") for o in outputs(notebook) if "data" in o]
    assert "Not here yet." in told
    # Nothing was lost on the way to the disk: 2 problems, 2 methods each, 2 seeds.
    stored = list((tmp_path / "results" / "bounds_and_kl").glob("*.time.json"))
    assert len(stored) == 8


@pytest.mark.slow
@pytest.mark.browser
def test_a_person_starts_cancels_and_goes_on(open_notebook, tmp_path):
    toy = [
        ('"rainy-week", "one-star-review"', '"rainy-week"'),
        ('"none", "shipped", "optimal"', '"none", "optimal", "ctl"'),
        ("num_runs=40", "num_runs=20, num_updates=100"),
    ]
    page = open_notebook(first_live_cell(NOTEBOOK, tmp_path, replace=toy))
    run_all_cells(page)
    page.wait_for_selector(".cm")
    page.wait_for_function(f"{VIEW}._stats.done >= 2")
    page.wait_for_function(f"{VIEW}.querySelector('.cm-one').innerText.includes('bound')")
    assert page.locator(".pv-lost").is_hidden()
    assert page.get_by_label("rare-event").is_disabled()
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_function(f"{STATE} === 'stopped'")
    done = page.evaluate(f"{VIEW}._stats.done")
    assert 2 <= done < 9

    folder = tmp_path / "notebooks" / "results" / "bounds_and_kl"
    stored = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len([name for name in stored if not name.endswith(".time.json")]) == done

    page.get_by_label("seeds", exact=True).focus()
    page.keyboard.type("dd")
    assert page.locator(".cm").count() == 1
    page.get_by_role("button", name="Go on").click()
    page.wait_for_function(f"{VIEW}._stats.done === 9", timeout=120_000)
    page.wait_for_function(f"{STATE} === 'done'")
    assert {name: (folder / name).stat().st_mtime_ns for name in stored} == stored
    page.wait_for_function(f"!{VIEW}.querySelector('.cm-one .cm-dots')")
    assert page.locator(".cm-one tbody tr").count() == 3

    # A cell that is run again finds everything, and computes nothing.
    run_all_cells(page)
    page.wait_for_function(f"{VIEW}?._stats.done === 9")
    assert page.get_by_role("button", name="All done").is_disabled()
