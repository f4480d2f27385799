"""The twists that ship: the script that makes them, and their measured quality."""

import json

import pytest
import torch

import tsmc_widgets as tw
from training.twists import TRAININGS, Training, ship
from tsmc_widgets.learning import Samples, score
from tsmc_widgets.twists.storage import SHIPPED_FOLDER, shipped_twists


@pytest.mark.parametrize(
    ("name", "start"),
    [("one-star-review", ""), ("infilling-2-1", ""), ("one-star-review", "hostile-story")],
)
def test_a_twist_is_trained_saved_and_measured(name, start, tmp_path):
    small = Training(updates=3, held_out=20, start=start)
    measured = ship(name, folder=tmp_path, training=small)
    card = json.loads((tmp_path / name / "twist.json").read_text())
    assert card["history"][-1] == json.loads(json.dumps(measured))
    assert measured["updates"] == 3
    assert (card["method"], len(card["history"])) == ("ctl+dpg", 4)
    assert {"before", "after"} <= set(measured)
    target = tw.load_problem(name).target()
    loaded = tw.load_twist(tmp_path / name, target.lm)
    assert loaded.card["target"]["potential"] == target.potential.describe()
    if not start:
        assert any(float(p.detach().abs().sum()) > 0 for p in loaded.parameters())
        return
    begun = zip(tw.load_twist(start, target.lm).parameters(), loaded.parameters(), strict=True)
    # Three updates do not lead far.
    moved = max(float((a - b).detach().abs().max()) for a, b in begun)
    assert 0 < moved < 0.05


def test_one_ships_for_every_problem_of_the_script():
    assert set(shipped_twists()) == set(TRAININGS)
    assert sum(path.stat().st_size for path in SHIPPED_FOLDER.rglob("*")) < 6e6


SLOW = {"happy-review"}  # It takes seconds to load SmolLM2.


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in sorted(TRAININGS)
    ],
)
def test_half_precision_loads_as_float32_and_names_its_target(name):
    target = tw.load_problem(name).target()
    twist = tw.load_twist(name, target.lm)
    assert {p.dtype for p in twist.parameters()} == {torch.float32}
    assert twist.card["target"]["potential"] == target.potential.describe()
    assert twist.card["target"]["num_steps"] == target.num_steps
    measured = twist.card["history"][-1]
    # Of a conditional target the sum alone is known; of an indicator KL(q||sigma) is infinite.
    which = "sum" if target.is_conditional else "KL(sigma||q)"
    (before, _), (after, error) = measured["before"][which], measured["after"][which]
    assert after + 2.5 * error < before


def test_an_unknown_name_says_what_ships():
    lm = tw.load_language_model("storybook")
    with pytest.raises(FileNotFoundError, match="or a name that ships: five-star-review, "):
        tw.load_twist("two-star-review", lm)


@pytest.mark.parametrize("name", ["one-star-review", "five-star-review"])
def test_it_is_closer_to_sigma_on_held_out_samples(name):
    target = tw.load_problem(name).target()
    exact = target.exact_samples(400, seed=90_210, progress=False)
    with torch.no_grad():
        scored = score(target, tw.load_twist(name, target.lm), Samples.exact(target, exact.tokens))
    gain = (scored.log_q_psi - scored.log_p).sum(1)
    assert float(gain.mean()) > 4.5 * float(gain.std()) / 400**0.5
