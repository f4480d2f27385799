"""How a widget's modules and style sheets become one text, and what all these texts share."""

import re

import pytest

from tsmc_widgets.widgets.front_end import CompareView, TrainView, join_modules
from tsmc_widgets.widgets.particle_view import ParticleView, RunPanels

VIEWS = pytest.mark.parametrize("view", [ParticleView, RunPanels, TrainView, CompareView])
DANGEROUS = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "</script")


@pytest.fixture
def write(tmp_path):
    """Function that writes files and gives the path of the first."""

    def write_all(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return tmp_path / next(iter(files)).replace("_", ".")

    return write_all


def test_what_is_imported_comes_first_and_once(write):
    entry = write(
        main_js='import { a } from "./a.js";\nimport { b } from "./b.js";\nexport default a + b;\n',
        a_js='import { b } from "./b.js";\nexport const a = b;\nconst a1 = 1;\n',
        b_js="export const b = 1;\nconst own = 2;\n",
    )
    assert join_modules(entry).split("\n\n") == [
        "const b$ = (() => {\nconst b = 1;\nconst own = 2;\nreturn { b };\n})();",
        "const a$ = (() => {\nconst { b } = b$;\nconst a = b;\nconst a1 = 1;\nreturn { a };\n})();",
        "const { a } = a$;\nconst { b } = b$;\nexport default a + b;\n",
    ]


def test_style_sheets_are_joined_in_the_same_way(write):
    entry = write(
        main_css='@import "./a.css";\n@import "./b.css";\n.main {}\n',
        a_css='@import "./b.css";\n.a {}\n',
        b_css=".b {}\n",
    )
    assert join_modules(entry).split() == [".b", "{}", ".a", "{}", ".main", "{}"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_js": 'import { b } from "./b.js";\n'}, r"a\.js imports b\.js: no such file"),
        (
            {
                "a_js": 'import { b, c } from "./b.js";\n',
                "b_js": "export const b = 1;\nconst c = 2;\n",
            },
            r"a\.js imports \['c'\] of b\.js: not exported",
        ),
        (
            {
                "a_js": 'import { b } from "./b.js";\n',
                "b_js": 'import { c } from "./c.js";\nexport const b = c;\n',
                "c_js": 'import { b } from "./b.js";\nexport const c = b;\n',
            },
            r"circular import: a\.js -> b\.js -> c\.js -> b\.js",
        ),
        ({"a_css": '@import "./a.css";\n'}, r"circular import: a\.css -> a\.css"),
    ],
)
def test_what_cannot_be_joined_is_named(write, files, message):
    with pytest.raises(ImportError, match=message):
        join_modules(write(**files))


@VIEWS
def test_script_is_one_module_that_never_parses_text_as_html(view):
    assert view._esm.count("export default") == 1
    assert not re.findall(r"^(?:import|export (?!default)) .*", view._esm, flags=re.MULTILINE)
    for name in DANGEROUS:
        assert name not in view._esm
    assert "</style" not in view._css


@VIEWS
def test_hello_is_answered(view):
    shown = view()
    shown.set_state({"hello": 17})
    assert shown.welcome == 17
