"""The core starts without Jupyter, plots or transformers, and its stubs name what is there."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tsmc_widgets
import tsmc_widgets.models

HEAVY = {"IPython", "anywidget", "ipywidgets", "jupyterlab", "pandas", "plotly"}
HEAVY |= {"tokenizers", "transformers"}
LAZY = [tsmc_widgets, tsmc_widgets.models]


def stub_imports(package):
    """Home, name and exported name of each import of a package's stub."""
    tree = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module, alias.name, alias.asname


@pytest.mark.parametrize(
    "code",
    [
        "import tsmc_widgets",
        "import tsmc_widgets.models, tsmc_widgets.testing",
        "import tsmc_widgets.models.storybook as s; s.card()",
    ],
)
def test_import_loads_nothing_heavy(code):
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "tsmc_widgets" in loaded
    assert not HEAVY.intersection(loaded)


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_stub_and_package_have_the_same_names(package):
    found = list(stub_imports(package))
    assert sorted(name for _, name, _ in found) == package.__all__
    for home, name, exported in found:
        assert exported == name, f"a type checker sees {name} only as `{name} as {name}`"
        assert getattr(package, name) is getattr(import_module(f"{package.__name__}.{home}"), name)


def test_stubs_are_used_by_type_checkers():
    assert (Path(tsmc_widgets.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("plotly", "bounds_figure", "lab"),
        ("anywidget", "Workbench", "lab"),
        ("transformers", "HuggingFaceLM", "hf"),
        ("transformers", "models.HuggingFaceLM", "hf"),
        ("traitlets", "WatchSMC", "lab"),
        ("traitlets", "models; import tsmc_widgets.widgets", "lab"),
        ("pandas", "models; import tsmc_widgets.figures", "lab"),
    ],
)
def test_name_without_its_extra_says_how_to_install_it(package, name, extra):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import tsmc_widgets as tw, tsmc_widgets.models\n"
        f"try: tw.{name}\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("MissingExtraError ")
    assert f"needs {package}, which is not installed" in told.stdout
    assert f"'tsmc-widgets[{extra}]'" in told.stdout


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'Nothing'"):
        _ = package.Nothing
