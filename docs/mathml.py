"""Formulas as MathML, which browsers draw themselves: no script and no network."""

from typing import Any

from latex2mathml.converter import convert


def inline(self: Any, node: Any) -> None:
    """A formula within a line."""
    from docutils import nodes

    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(self: Any, node: Any) -> None:
    """A formula on a line of its own."""
    from docutils import nodes

    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Make it the renderer of formulas."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
