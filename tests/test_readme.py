"""README, tour and results run as they stand, and say what is so."""

import contextlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest

import tsmc_widgets as tw
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.twists.storage import SHIPPED_FOLDER

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
TABLES = ROOT / "notebooks" / "tables"
BLOCKS = re.findall(r"^```python\n(.*?)^```", TOUR, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """Names after all blocks have run, one after the other, in a folder of their own."""
    names = {}
    with contextlib.chdir(tmp_path_factory.mktemp("tour")):
        for block in BLOCKS:
            exec(compile(block, "docs/tour.md", "exec"), names)
    return names


def test_the_tour_has_every_part():
    assert len(BLOCKS) >= 6


def test_one_run_has_floats_and_tables(tour):
    trace = tour["trace"]
    assert isinstance(trace.log_z, float)
    assert trace.ess.shape == (20,)
    frame = trace.to_frame()
    assert list(frame.text) == trace.texts()
    assert abs(frame.weight.sum() - 1) < 1e-12
    dead = frame[frame.text.str.contains("broken")]
    assert (dead.weight == 0).all()


def test_hundred_runs_agree_with_each_other(tour):
    runs = tour["runs"]
    assert runs.log_z.shape == (100,)
    alone = tw.run_smc(tour["target"], num_particles=64, seed=0, first_run=3)
    assert (alone.columns.tokens[0] == runs.columns.tokens[3]).all()
    assert float(tour["standard_error"]) > 0


def test_the_toy_is_exact(tour):
    assert tour["above"].shape == (8,)
    assert abs(tour["oracle"].log_z - EnumeratedOracle(tour["toy"]).log_z) < 1e-12


@pytest.mark.parametrize("name", tw.shipped_twists())
def test_what_shipped_heads_are_worth_is_what_was_measured(name):
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", RESULTS, flags=re.MULTILINE)
    card = json.loads((SHIPPED_FOLDER / name / "twist.json").read_text())["history"][-1]
    pairs = [
        card[when].get(which) for which in ("KL(sigma||q)", "sum") for when in ("before", "after")
    ]
    for cell, pair in zip(row.split("|"), pairs, strict=True):
        numbers = re.findall(r"[\d.]+", cell.split("(")[0])
        if not numbers:
            assert pair is None or pair[0] is None
        for number, value in zip(numbers, pair or (), strict=False):
            digits = len(number.partition(".")[2])
            assert float(number) == pytest.approx(round(value, digits), abs=1e-12)


def test_the_papers_comparison_is_what_was_measured():
    found = pd.read_csv(TABLES / "paper_twins.csv").set_index(["experiment", "method", "quantity"])
    (head,) = re.findall(r"^\| method \| (toxicity .*) \|$", RESULTS, flags=re.MULTILINE)
    rows = re.findall(r"^\| (\S+|p₀ itself) ((?:\| [^|]* · [^|]* ){4})\|$", RESULTS, re.MULTILINE)
    assert len(rows) == 9
    for name, cells in rows:
        method = "none" if name == "p₀ itself" else name.lower()
        for experiment, cell in zip(head.split(" | "), cells.strip("| ").split(" | "), strict=True):
            for quantity, told in zip(("KL(q||σ)", "KL(σ||q)"), cell.split(" · "), strict=True):
                if told == "diverges":
                    assert (experiment, method, quantity) not in found.index
                    continue
                row = found.loc[(experiment, method, quantity)]
                numbers = (row.value, (row.high - row.low) / 2)
                for text, number in zip(told.split(" ± "), numbers, strict=True):
                    digits = len(text.partition(".")[2])
                    assert float(text) == pytest.approx(round(number, digits), abs=1e-12)


def test_pairs_in_the_papers_order_are_counted_right():
    text = (TABLES / "paper_twins.md").read_text(encoding="utf-8")
    pairs = re.findall(r"pairs: (\d+) same, (\d+) opposite, (\d+) undecided", text)
    same, opposite, undecided = (sum(map(int, counts)) for counts in zip(*pairs, strict=True))
    words = " ".join(RESULTS.split())
    assert f"the order is the paper's in {same} cases and the opposite in {opposite};" in words
    assert f"in {undecided} they do not separate them." in words


def test_the_shipped_twist_is_closer_to_sigma(tour):
    assert tour["trainer"].done == 5
    near, far = tour["kl"].symmetrised, tour["plain"].symmetrised
    assert near.interval()[1] < far.interval()[0]
    assert set(tour["bounds"].to_frame().num_particles) == {1, 4, 16}


def test_the_toys_are_compared_and_written(tour):
    frame = tour["toys"].to_frame()
    upper = frame[(frame.method == "optimal") & (frame.side == "upper")]
    assert set(upper.problem) == {"rainy-week", "eos"}
    assert (upper.value - upper.exact).abs().max() < 1e-9
    assert not tour["session"].table.failures


def test_a_users_own_potential_moves_the_samples(tour):
    texts = tw.run_smc(tour["excited"], num_particles=64).resampled_frame(seed=0).text
    plain = tw.run_smc(
        tw.Target(tour["lm"], tw.Constant(), prompt="I bought this", num_steps=20),
        num_particles=64,
    ).texts()
    assert texts.str.count("!").sum() > sum(text.count("!") for text in plain)


def test_the_readme_fits_a_screen():
    assert len(README.splitlines()) <= 66


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_named_modules_and_commands_exist():
    import dev

    text = README + "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    for command in re.findall(r"python3 dev\.py (\w+)", text):
        assert re.search(rf"^  {command}\b", dev.USAGE, flags=re.MULTILINE), command
    for name in re.findall(r"python3? dev\.py bench (\w+)", text):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    for module in re.findall(r"python -m (training[.\w]*)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
