"""Widgets in one HTML file: scripts, styles and state, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsmc_widgets.files import write_atomically

_SCRIPT = (Path(__file__).parent / "js" / "offline.js").read_text("utf-8")
_STYLE = """
html { color-scheme: light dark; background: Canvas; color: CanvasText; }
#views { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); }
body { margin: 0 auto; padding: 16px; max-width: 1760px; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}<main id="views"></main>
<script type="application/json" id="state">{state}</script>
<script type="module">{script}</script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A widget of a page.

    Attributes:
        esm: its module, which ends by exporting what ``host`` makes.
        css: its style.
        runs: traits of each run; bytes become base64.
        state: traits that do not depend on the run.
    """

    esm: str
    css: str
    runs: dict[int, dict[str, Any]]
    state: dict[str, Any] = field(default_factory=dict)


def write_page(
    path: Path,
    *,
    title: str,
    parts: Sequence[Part],
    run: int,
    body: str = "",
    script: str = "",
    style: str = "",
) -> Path:
    """Write a view of runs that needs neither kernel nor network; it appears whole or not at all.

    Args:
        path: the file.
        title: of the page.
        parts: the widgets, from the top.
        run: the one that is shown first.
        body: HTML above the widgets.
        script: what else the page does; ``models`` are the widgets' models.
        style: of what stands in ``body``.
    """
    # Expressions with names of their own: modules share some of their sources.
    bodies = [part.esm.replace("export default ", "return ") for part in parts]
    modules = ",\n".join("(() => {\n" + body + "\n})()" for body in bodies)
    script = f"const widgets = [{modules}];\n{_SCRIPT}\n{script}"
    style = "\n".join(part.css for part in parts) + _STYLE + style
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    state = {
        "run": run,
        "parts": [
            {
                "state": part.state,
                "runs": {str(at): _portable(traits) for at, traits in part.runs.items()},
            }
            for part in parts
        ],
    }
    page = _PAGE.format(
        policy=policy,
        title=html.escape(title),
        body=body,
        style=style,
        state=json.dumps(state).replace("<", "\\u003c"),
        script=script,
    )
    with write_atomically(path) as part:
        part.write_text(page, "utf-8", errors="backslashreplace", newline="\n")
    return path


def _portable(traits: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in traits.items()
    }


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
