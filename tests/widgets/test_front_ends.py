"""What all views share: one safe script each, and an answer to their page."""

import re

import pytest

from tsmc_widgets.widgets.front_end import CompareView, TrainView
from tsmc_widgets.widgets.particle_view import ParticleView, RunPanels

pytestmark = pytest.mark.parametrize("view", [ParticleView, RunPanels, TrainView, CompareView])
DANGEROUS = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "</script")


def test_script_is_one_module_that_never_parses_text_as_html(view):
    assert view._esm.count("export default") == 1
    assert not re.findall(r"^(?:import|export (?!default)) .*", view._esm, flags=re.MULTILINE)
    for name in DANGEROUS:
        assert name not in view._esm
    assert "</style" not in view._css


def test_hello_is_answered(view):
    shown = view()
    shown.set_state({"hello": 17})
    assert shown.welcome == 17
