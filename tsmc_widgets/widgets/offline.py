"""A widget in one HTML file: its script, its style and its state, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import uuid
from pathlib import Path
from typing import Any

_SCRIPT = (Path(__file__).parent / "js" / "offline.js").read_text("utf-8")
_STYLE = """
html { color-scheme: light dark; background: Canvas; color: CanvasText; }
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
<main id="view"></main>
<script type="application/json" id="state">{state}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def write_page(
    path: Path, *, title: str, esm: str, css: str, runs: dict[int, dict[str, Any]], run: int
) -> Path:
    """Write a view of runs that needs neither kernel nor network; it appears whole or not at all.

    Args:
        path: the file.
        title: of the page.
        esm: the widget's module, which ends by exporting what it makes.
        css: the widget's style.
        runs: traits of each run; bytes become base64.
        run: the one that is shown first.
    """
    script = esm.replace("export default ", "const widget = ") + _SCRIPT
    style = css + _STYLE
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    state = {"run": run, "runs": {str(at): _portable(traits) for at, traits in runs.items()}}
    page = _PAGE.format(
        policy=policy,
        title=html.escape(title),
        style=style,
        state=json.dumps(state).replace("<", "\\u003c"),
        script=script,
    )
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_text(page, "utf-8", newline="\n")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def _portable(traits: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in traits.items()
    }


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
