"""The size and shape of the source, counted: lines, files, names, probes, importers, functions.

    python benchmarks/house.py
    python benchmarks/house.py --root ANOTHER_CHECKOUT

Every figure is computed from the source; what each counts exactly stands in the function that
computes it. Those with * are the largest of their kind.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "tsmc_widgets"
# The row of factor controls is a table from kind to controls, so it has to name every kind.
KIND_TABLE = f"{PACKAGE}/widgets/factor_editor.py"
# Objects of libraries and of the platform, whose attributes differ between versions and systems.
FOREIGN = re.compile(
    r"\b(config|tokenizer|model|layers?|cache|torch|psutil|os|sys|signal|main|executor|get_ipython)\b"
)


@dataclass(frozen=True)
class Function:
    """A function and its length, docstring not counted."""

    name: str
    lines: int


class Source:
    """One Python file, read once."""

    def __init__(self, path: Path, root: Path) -> None:
        """Take a file below a project folder."""
        self.path = path
        self.name = path.relative_to(root).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.lines = len(self.text.splitlines())

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        """Its dotted name."""
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_init(self) -> bool:
        """Whether it is a package's ``__init__``."""
        return self.path.name == "__init__.py"

    def documented(self) -> Iterator[tuple[ast.AST, int]]:
        """Each module, class or function with the number of lines of its docstring."""
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        for node in ast.walk(self.tree):
            if isinstance(node, kinds):
                has = ast.get_docstring(node, clean=False) is not None
                first = node.body[0] if has else None
                yield node, first.end_lineno - first.lineno + 1 if first else 0

    def functions(self) -> Iterator[Function]:
        """Its functions and methods."""
        for node, docstring in self.documented():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(node.name, node.end_lineno - node.lineno + 1 - docstring)

    def comments(self) -> int:
        """Comments, one at most a line."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return sum(token.type == tokenize.COMMENT for token in tokens)

    def names(self) -> set[str]:
        """Identifiers it uses or imports, and strings that are one identifier."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.alias):
                found |= set(node.name.split("."))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
        return found

    def probes(self) -> Iterator[tuple[int, str]]:
        """Line and object of each ``hasattr``, and of each ``getattr`` that has a default."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                sizes = {"hasattr": 2, "getattr": 3}
                if sizes.get(node.func.id) == len(node.args):
                    yield node.lineno, ast.unparse(node.args[0])


class House:
    """The source of a checkout."""

    def __init__(self, root: Path) -> None:
        """Read a checkout's Python."""
        self.root = root
        self.package = [Source(path, root) for path in sorted((root / PACKAGE).rglob("*.py"))]
        self.tests = [Source(path, root) for path in sorted((root / "tests").rglob("*.py"))]
        self.page = sorted(
            path for kind in ("js", "css") for path in (root / PACKAGE).rglob(f"*.{kind}")
        )

    def lines(self) -> int:
        """Lines of the package's Python."""
        return sum(source.lines for source in self.package)

    def rooms(self) -> dict[str, tuple[int, int]]:
        """Lines and files of each folder of the package."""
        rooms: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for source in self.package:
            parts = source.path.relative_to(self.root / PACKAGE).parts
            room = parts[0] if len(parts) > 1 else "(top)"
            lines, files = rooms[room]
            rooms[room] = lines + source.lines, files + 1
        return dict(rooms)

    def kinds(self) -> dict[str, str]:
        """Public kinds of potential, by inheritance from Potential, and the file of each."""
        bases: dict[str, set[str]] = {}
        homes: dict[str, str] = {}
        for source in self.package:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.ClassDef) and source.name.startswith(f"{PACKAGE}/targets"):
                    bases[node.name] = {
                        each.id for each in node.bases if isinstance(each, ast.Name)
                    }
                    homes[node.name] = source.name

        def is_potential(name: str) -> bool:
            return name == "Potential" or any(map(is_potential, bases.get(name, ())))

        exported = next(s for s in self.package if s.name == f"{PACKAGE}/targets/__init__.py")
        public = exported.names()
        return {
            name: home
            for name, home in homes.items()
            if name in public and name != "Potential" and is_potential(name)
        }

    def namers(self) -> dict[str, list[str]]:
        """For each kind of potential the files that name it as an identifier or a whole string.

        Left out: the file of its class, ``__init__`` files, and the table of factor controls.
        """
        kinds = self.kinds()
        found: dict[str, list[str]] = {kind: [] for kind in kinds}
        for source in self.package:
            if source.is_init or source.name == KIND_TABLE:
                continue
            for kind in kinds.keys() & source.names():
                if kinds[kind] != source.name:
                    found[kind].append(source.name.removeprefix(f"{PACKAGE}/"))
        return found

    def probes(self, *, foreign: bool = False) -> list[str]:
        """Places that ask whether an object has a member; of torch's and transformers' apart."""
        return [
            f"{source.name}:{line}"
            for source in self.package
            for line, subject in source.probes()
            if bool(FOREIGN.search(subject)) == foreign
        ]

    def repeated_names(self) -> dict[str, int]:
        """Base names of modules that occur more than once, ``__init__`` left out."""
        counts = Counter(source.path.stem for source in self.package if not source.is_init)
        return {name: count for name, count in counts.items() if count > 1}

    def lonely(self) -> list[str]:
        """Modules that at most one module imports, ``__init__`` neither counted nor counting."""
        importers: dict[str, set[str]] = {s.module: set() for s in self.package if not s.is_init}
        for source in self.package:
            if source.is_init:
                continue
            for node in ast.walk(source.tree):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
                elif isinstance(node, ast.Import):
                    names = {each.name for each in node.names}
                else:
                    continue
                for name in names & importers.keys():
                    importers[name].add(source.module)
        return sorted(name for name, found in importers.items() if len(found) <= 1)

    def short_files(self, below: int = 60) -> list[str]:
        """Files of fewer lines, ``__init__`` left out."""
        return [s.name for s in self.package if s.lines < below and not s.is_init]

    def longest_function(self) -> tuple[int, str]:
        """Lines without docstring, and where."""
        return max((f.lines, f"{s.name}:{f.name}") for s in self.package for f in s.functions())

    def share(self, part: str) -> float:
        """Lines of comments, or of docstrings, as a share of all lines of the package."""
        if part == "comments":
            count = sum(source.comments() for source in self.package)
        else:
            count = sum(lines for source in self.package for _, lines in source.documented())
        return count / self.lines()

    def page_lines(self) -> int:
        """Lines of JavaScript and CSS."""
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in self.page)

    def scripts_without_imports(self) -> list[str]:
        """JavaScript files that have no ``import`` and no ``export``."""
        return [
            path.name
            for path in self.page
            if path.suffix == ".js"
            and not re.search(r"^(import|export)\b", path.read_text("utf-8"), re.MULTILINE)
        ]

    def script_lists(self) -> int:
        """Lists in Python of three or more JavaScript files, by whose order they are joined."""
        stems = {path.stem for path in self.page if path.suffix == ".js"}
        count = 0
        for source in self.package:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Tuple | ast.List):
                    parts = [e.value for e in node.elts if isinstance(e, ast.Constant)]
                    names = [str(each).removesuffix(".js").split("/")[-1] for each in parts]
                    count += len(stems.intersection(names)) >= 3
        return count


def figures(house: House) -> dict[str, str]:
    """The figures of a checkout, by name."""
    namers = house.namers()
    most = max(namers, key=lambda kind: len(namers[kind]))
    size, where = house.longest_function()
    file = max(house.package, key=lambda source: source.lines)
    return {
        "Python lines": f"{house.lines():,}",
        "Python files": str(len(house.package)),
        "JavaScript and CSS lines": f"{house.page_lines():,}",
        "scripts without ES imports": str(len(house.scripts_without_imports())),
        "hand-ordered lists of scripts": str(house.script_lists()),
        "files naming one kind of potential *": f"{len(namers[most])} ({most})",
        "probes for optional members": str(len(house.probes())),
        "probes of torch's and transformers' objects": str(len(house.probes(foreign=True))),
        "base names used more than once": str(len(house.repeated_names())),
        "modules with at most one importer": str(len(house.lonely())),
        "files under 60 lines": str(len(house.short_files())),
        "lines of a function *": f"{size} ({where.rpartition(':')[2]})",
        "lines of a file *": f"{file.lines} ({file.path.name})",
        "share of comments": f"{100 * house.share('comments'):.1f} %",
        "share of docstrings": f"{100 * house.share('docstrings'):.1f} %",
        "lines of tests": f"{sum(source.lines for source in house.tests):,}",
    }


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, columns aligned."""
    table = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, tuple("-" * width for width in widths))
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Print the figures, the share of each room, and where the counted things are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    house = House(parser.parse_args().root)
    print_table(("figure", "now"), figures(house).items())
    print()
    rooms = sorted(house.rooms().items(), key=lambda room: -room[1][0])
    print_table(
        ("room", "lines", "files", "share"),
        (
            (room, f"{lines:,}", str(files), f"{100 * lines / house.lines():.0f} %")
            for room, (lines, files) in rooms
        ),
    )
    print()
    namers = sorted(house.namers().items(), key=lambda kind: -len(kind[1]))
    print_table(
        ("kind of potential", "named in", "files"),
        ((kind, str(len(files)), ", ".join(sorted(files))) for kind, files in namers),
    )
    for title, places in (
        ("probes", house.probes()),
        ("base names used more than once", list(house.repeated_names())),
        ("modules with at most one importer", house.lonely()),
        ("files under 60 lines", house.short_files()),
    ):
        print(f"\n{title}: {', '.join(places)}")


if __name__ == "__main__":
    main()
