"""One test for each line of docs/security.md that is not about the app's server."""

import json
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models.checkpoints import make_checkpoint

import tsmc_widgets as tw
from tsmc_widgets.errors import UnsupportedModelError
from tsmc_widgets.experiments.execute import work
from tsmc_widgets.models.loading import load_classifier, load_language_model
from tsmc_widgets.targets.description import parse_potential
from tsmc_widgets.widgets.controls import made_by_a_cell
from tsmc_widgets.widgets.factor_editor import PotentialEditor
from tsmc_widgets.widgets.workbench import WorkbenchState
from tsmc_widgets.widgets.workbench_rail import ProblemPanel

ROOT = Path(__file__).parents[1]
STRANGER = "stranger_of_the_tests"
FUNCTION = {"kind": "TextFunction", "function": f"{STRANGER}:f"}
PROBLEM = {
    "name": "named by a stranger",
    "model": "table:rainy-week",
    "prompt": "sun",
    "num_steps": 2,
    "potential": [FUNCTION],
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Gives whether a module that lies on the path was imported."""
    (tmp_path / f"{STRANGER}.py").write_text("def f(text):\n    return 0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: STRANGER in sys.modules
    sys.modules.pop(STRANGER, None)


def test_a_visitor_names_no_function(stranger):
    editor = PotentialEditor([{"kind": "TextFunction", "function": ""}], lambda: None)
    with pytest.raises(Exception, match="Invalid selection"):
        editor.rows[0].fields["function"].value = FUNCTION["function"]
    assert editor.add({"kind": "Length", "at_least": 1}).error == ""
    whole = PotentialEditor([{"kind": "CountToken", "args": ["yes"], "at_least": 2}], lambda: None)
    whole.rows[0].fields["json"].value = json.dumps(FUNCTION)
    with pytest.raises(ValueError, match="not registered here"):
        parse_potential(whole.parts)
    assert not stranger()


def test_a_visitor_loads_no_model_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    outside = make_checkpoint("gpt2", tmp_path / "outside")
    inside = make_checkpoint("gpt2", tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    told = []
    panel = ProblemPanel("rainy-week", lambda: told.append(1))
    before = panel.fields["model"].value
    for name in (str(outside), "../outside", "/nowhere"):
        panel.fields["model"].value = name
        assert panel.fields["model"].value == before
        assert "span" in panel.note.value
        assert told == []
    panel.fields["model"].value = inside.name
    assert (panel.described["model"], told) == ("model", [1])


OUTSIDE = "../outside"
JUDGE = {"kind": "ClassProbability", "label": 1}


@pytest.mark.parametrize(
    "named",
    [
        {"lm": OUTSIDE},
        {"lm": "/outside"},
        {"twist": OUTSIDE, "method": "saved"},
        {"problem": {"model": OUTSIDE}},
        {"problem": {"potential": [{**JUDGE, "model": OUTSIDE}]}},
        {"problem": {"potential": [{**JUDGE, "args": [OUTSIDE]}]}},
        {"problem": {"potential": {"kind": "TemperedReward", "reward": OUTSIDE, "beta": 1}}},
    ],
    ids=str,
)
def test_a_file_names_no_model_or_twist_from_elsewhere(tmp_path, monkeypatch, named):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    problem = {**PROBLEM, "potential": [{"kind": "Constant"}]}
    own = tw.RunSpec(problem=problem, num_particles=2, num_runs=1)
    theirs = own.with_(**{**named, "problem": {**problem, **named.get("problem", {})}})
    page = tw.Workbench(own)
    for state in ({"spec": theirs}, {"spec": own, "pinned": theirs}):
        WorkbenchState(**state).save("page.json")
        with pytest.raises(ValueError, match="inside the notebook's folder only"):
            tw.Workbench.load("page.json")
        page.file.path.value = "page.json"
        page.file.buttons["load"].click()
        assert "inside the notebook&#x27;s folder only" in page.file.message.value
        assert page.spec == WorkbenchState(spec=own).spec
    page.close()


def test_the_notebooks_functions_are_chosen_by_name():
    tw.register_function(len, name="length of the tests")
    row = PotentialEditor([{"kind": "TextFunction", "function": ""}], lambda: None).rows[0]
    row.fields["function"].value = "length of the tests"
    assert parse_potential([row.part]).describe() == "exp(length of the tests(text))"


CELL = {"header": {"msg_type": "execute_request"}, "metadata": {"cellId": "a"}}


@pytest.mark.parametrize(
    ("request_", "environment", "may"),
    [
        (CELL, {}, True),
        (CELL, {"SERVER_SOFTWARE": "voila/0.5.13"}, False),
        (CELL, {"VOILA_REQUEST_URL": ""}, False),
        # As Voila, nbclient and others run notebooks; and a page's message that names a cell.
        ({**CELL, "metadata": {}}, {}, False),
        ({**CELL, "header": {"msg_type": "comm_msg"}}, {}, False),
        ({}, {}, False),
        (None, {}, False),
    ],
)
def test_code_is_typed_only_where_a_cell_of_a_notebook_made_the_page(
    monkeypatch, request_, environment, may
):
    assert not made_by_a_cell()
    kernel = SimpleNamespace(get_parent=lambda: request_)
    shell = SimpleNamespace(kernel=kernel)
    monkeypatch.setattr("tsmc_widgets.widgets.controls.get_ipython", lambda: shell)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert made_by_a_cell() is may


def test_without_a_cell_no_row_has_an_editor():
    page = tw.Workbench({**PROBLEM, "potential": [{"kind": "TextFunction", "function": "len"}]})
    try:
        page.problem.editor.menu.value = "a Python function"
        assert [row.code for row in page.problem.editor.rows] == [None, None]
    finally:
        page.close()


def test_a_file_names_no_function(stranger, tmp_path):
    spec = tw.RunSpec(problem=PROBLEM, num_particles=2, num_runs=1)
    page = WorkbenchState(spec=spec).save(tmp_path / "page.json")
    with pytest.raises(ValueError, match=r"register_function\('stranger_of_the_tests:f'\), if"):
        tw.Workbench.load(page)
    with pytest.raises(ValueError, match="not registered here"):
        tw.execute(tw.RunSpec.from_json(spec.to_json()))
    assert not stranger()


def test_a_worker_imports_nothing_by_name(stranger, tmp_path):
    spec = tw.RunSpec(problem=PROBLEM, num_particles=2, num_runs=1, measures="runs")
    answer = work(spec.to_json(), str(tmp_path / "shared"))
    assert "not registered here" in answer["error"]["message"]
    assert not stranger()


def test_python_code_may_allow_a_function_of_a_file(stranger, tmp_path):
    spec = tw.RunSpec(problem=PROBLEM, num_particles=2, num_runs=1)
    page = WorkbenchState(spec=spec).save(tmp_path / "page.json")
    tw.Workbench.load(page, functions=[FUNCTION["function"]]).close()
    assert stranger()


@pytest.mark.parametrize("load", [load_language_model, load_classifier])
def test_a_model_folder_runs_no_code(tmp_path, monkeypatch, load):
    folder = make_checkpoint("gpt2", tmp_path / "model")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    with pytest.raises(UnsupportedModelError, match="code of its own, which is never run"):
        load(folder)
    assert not ran.exists()


class Opens:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_weights_run_no_code(tmp_path):
    folder = make_checkpoint("gpt2", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    torch.save({"lm_head.weight": Opens(ran)}, folder / "pytorch_model.bin")
    with pytest.raises((UnsupportedModelError, FileNotFoundError, pickle.UnpicklingError)):
        load_language_model(folder)
    assert not ran.exists()


def test_each_line_of_the_threat_model_has_its_tests():
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (`test_[^|]+) \|$", page, re.MULTILINE)
    assert {line.partition(":")[0] for line, _ in rows} == {
        "author", "visitor", "saved page, spec or result", "saved page", "model or twist folder",
        "worker",
    }  # fmt: skip
    source = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for _, tests in rows:
        for test in re.findall(r"`(\w+)`", tests):
            assert f"def {test}(" in source, test
