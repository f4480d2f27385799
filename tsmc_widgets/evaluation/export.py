"""Tables of a comparison as CSV, LaTeX and HTML: one row a method, one column a problem."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from tsmc_widgets.evaluation.bounds_table import method_name
from tsmc_widgets.evaluation.summary import OverSeeds, Place

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "σ": r"$\sigma$", "φ": r"$\varphi$", "ψ": r"$\psi$", "±": r"$\pm$", "–": "--", "∞": r"$\infty$",
    "−": "$-$",
}  # fmt: skip
_SPECIAL = re.compile("|".join(re.escape(mark) for mark in _LATEX))
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts to be written down.

    Attributes:
        title: what the numbers are.
        columns: heads, that of the first column first.
        rows: a method's name and its cells.
        bold: which cells stand out, by (row, column).
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def of(cls, entries: Sequence[OverSeeds], methods: Sequence[str], *, title: str) -> Grid:
        """Numbers of one quantity; what a method lacks is a dash."""
        places = list(dict.fromkeys(entry.place for entry in entries))
        known = {(entry.method, entry.rule, entry.place): entry for entry in entries}
        ways = [(e.method, e.rule) for m in methods for e in entries if e.method == m]
        rules = {rule for _, rule in ways}
        rows, bold = [], set()
        for at, (method, rule) in enumerate(dict.fromkeys(ways)):
            cells = [known.get((method, rule, place)) for place in places]
            name = _row_label(method, rule, rules)
            rows.append((name, *(NOTHING if cell is None else cell_text(cell) for cell in cells)))
            bold |= {(at, i + 1) for i, cell in enumerate(cells) if cell is not None and cell.best}
        return cls(title, ("method", *_labels(places)), tuple(rows), frozenset(bold))

    def to_csv(self) -> str:
        """Comma-separated; what looks like a formula to a spreadsheet is put in quotes of text."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for row in (self.columns, *self.rows):
            writer.writerow([no_formula(cell) for cell in row])
        return out.getvalue()

    def to_latex(self) -> str:
        """A ``tabular`` with the rules of booktabs; the best in bold."""
        lines = [rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(latex, self.columns)) + r" \\", r"\midrule"]
        for at, row in enumerate(self.rows):
            cells = [
                rf"\textbf{{{latex(cell)}}}" if (at, i) in self.bold else latex(cell)
                for i, cell in enumerate(row)
            ]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        return f"% {' '.join(self.title.split())}\n" + "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """A table whose texts are escaped; the best in bold."""
        right = ' style="text-align:right"'
        head = "".join(
            f'<th scope="col"{right if i else ""}>{escape(name)}</th>'
            for i, name in enumerate(self.columns)
        )
        body = []
        for at, row in enumerate(self.rows):
            cells = [f'<th scope="row">{escape(row[0])}</th>']
            for i, cell in enumerate(row[1:], start=1):
                text = escape(cell)
                text = f"<strong>{text}</strong>" if (at, i) in self.bold else text
                cells.append(f"<td{right}>{text}</td>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        return (
            f"<table><caption>{escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>\n"
        )

    def to_markdown(self) -> str:
        """A table for a README; the best in bold."""
        lines = ["| " + " | ".join(map(_pipe, self.columns)) + " |"]
        lines.append("|---|" + "---:|" * (len(self.columns) - 1))
        for at, row in enumerate(self.rows):
            cells = [
                f"**{_pipe(cell)}**" if (at, i) in self.bold else _pipe(cell)
                for i, cell in enumerate(row)
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def cell_text(entry: OverSeeds) -> str:
    """``1.07 ± 0.12``: the mean over seeds and half of its 95 % interval."""
    mean, half = entry.mean, entry.half_width
    if math.isnan(mean):
        return NOTHING
    if math.isinf(mean):
        return "∞" if mean > 0 else "−∞"
    digits = 3 if half < 0.05 else 2
    middle, reach = (f"{value:.{digits}f}".replace("-", "−") for value in (mean, half))
    if not middle.strip("−0."):
        middle = middle.removeprefix("−")
    return middle if math.isinf(half) or half < 1e-9 else f"{middle} ± {reach}"


def latex(text: str) -> str:
    """Text with everything that LaTeX would take for a command written as it reads."""
    return _SPECIAL.sub(lambda found: _LATEX[found[0]], text)


def _row_label(method: str, rule: str, rules: set[str]) -> str:
    """The method, and how it samples where the table knows several ways."""
    rules = rules - {""}
    if not rule or len(rules) < 2:
        return method
    if rule != "never" and len(rules - {"never"}) == 1:
        return f"{method}, SMC"
    return f"{method}, {method_name(rule)}"


def _labels(places: Sequence[Place]) -> list[str]:
    """Shortest names that tell the columns apart."""
    several = len({place.num_particles for place in places}) > 1
    return [
        f"{place.problem}, K = {place.num_particles}" if several else place.problem
        for place in places
    ]


def no_formula(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _pipe(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def page(tables: Iterable[str]) -> str:
    """Tables of HTML as a page that looks well by itself, light and dark."""
    style = (
        ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem}"
        "table{border-collapse:collapse;margin-bottom:2rem}caption{text-align:left;padding:.4em 0}"
        "th,td{padding:.25em .9em .25em 0;border-top:1px solid #8886;font-variant-numeric:"
        "tabular-nums}tbody th{text-align:left;font-weight:400}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Comparison</title>'
        f"<style>{style}</style></head><body>{''.join(tables)}</body></html>\n"
    )
