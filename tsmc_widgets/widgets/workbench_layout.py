"""How the workbench's controls stand on the page."""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets as ipw

from tsmc_widgets.errors import message_of
from tsmc_widgets.widgets.problem_panel import ProblemPanel
from tsmc_widgets.widgets.sampler_panel import SamplerPanel


def arrange(problem: ProblemPanel, sampler: SamplerPanel) -> ipw.Box:
    """Four groups of controls, in as many columns as fit."""
    what = ("problem", "model", "prompt", "num_steps", "eos")
    how = ("twist", "folder", "twist_power", "proposal", "rule", "ess_threshold", "resampler")
    size = ("num_particles", "num_runs", "seed")
    groups = [
        _group("problem", "Problem", [*(problem.fields[name] for name in what), problem.note]),
        _group("potential", "Potential φ: which texts", [problem.editor]),
        _group("sampler", "How to sample", [*(sampler.fields[name] for name in how), sampler.note]),
        _group("size", "How much", [sampler.fields[name] for name in size]),
    ]
    box = ipw.Box(groups, layout={"width": "100%"})
    box.add_class("tw-panels")
    return box


def _group(name: str, title: str, children: list[ipw.Widget]) -> ipw.VBox:
    heading = ipw.Label(title)
    heading.add_class("tw-title")
    box = ipw.VBox([heading, *children])
    box.add_class("tw-group")
    box.add_class(f"tw-group-{name}")
    return box


def formula_box(formula: ipw.HTML, replayed: ipw.HTML) -> ipw.VBox:
    """Log phi, and what was done when it last changed."""
    replayed.add_class("tw-replay")
    box = ipw.VBox([formula, replayed], layout={"width": "100%"})
    box.add_class("tw-formula")
    return box


def replay_choice(on: bool) -> ipw.Checkbox:
    """Whether the recorded run may be weighed anew."""
    tooltip = (
        "After a change of φ alone, weigh the recorded run anew where that gives the very trace of "
        "a fresh run on the same noise"
    )
    return ipw.Checkbox(
        on, description="re-weigh where valid", indent=False, tooltip=tooltip,
        layout={"width": "auto"},
    )  # fmt: skip


def file_row(act: Callable[[str, str], str]) -> tuple[ipw.Text, ipw.Box]:
    """A path with buttons that save the page there, or load it from there.

    Args:
        act: of "save" or "load" and the path; gives what to say, and raises where it can not.
    """
    path = ipw.Text(value="workbench.json", layout={"width": "170px"})
    path.tooltip = "A file beside the notebook"
    said = ipw.HTML(layout={"margin": "0"})
    said.add_class("tw-note")
    buttons = [
        ipw.Button(description=name, tooltip=tooltip, layout={"width": "auto"})
        for name, tooltip in (
            ("Save", "Write all that is on the page to this file"),
            ("Load", "Show what was saved in this file"),
        )
    ]

    def press(button: ipw.Button) -> None:
        try:
            text = act(button.description.lower(), path.value.strip())
        except Exception as error:  # noqa: BLE001 - said beside the button
            text = message_of(error)
        said.value = f'<span role="status">{html.escape(text)}</span>'

    for button in buttons:
        button.on_click(press)
    row = ipw.HBox([path, *buttons, said])
    row.add_class("tw-file")
    return path, row
