"""The page without install: storybook, its judge and the particle view in one HTML file."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from tsmc_widgets import models
from tsmc_widgets.widgets.front_end import Part, write_page
from tsmc_widgets.widgets.particle_view import ParticleView

HERE = Path(__file__).parent
WEIGHTS = Path(models.__file__).parent / "storybook" / "weights"
STYLE = """
header { font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; }
header p { max-width: 46rem; margin: 0.4rem 0; }
#controls { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; padding: 8px 0; }
#controls label { display: inline-flex; gap: 6px; align-items: center; white-space: nowrap; }
#controls input, #controls select, #controls button { font: inherit; }
#controls output { min-width: 2.2em; }
#note { min-height: 1.5em; font-weight: 600; }
"""


def _held(name: str, content: bytes) -> str:
    text = base64.b64encode(content).decode()
    return f'<script type="text/plain" id="{name}">{text}</script>\n'


def write(path: Path) -> Path:
    """Write the page; it needs no network, and its content policy forbids one."""
    config = {
        name: json.loads((WEIGHTS / folder / "config.json").read_text(encoding="utf-8"))
        for name, folder in (("lm", "lm"), ("judge", "stars"))
    }
    tokenizer = json.loads((WEIGHTS / "lm" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    sizes = ("n_layer", "n_head", "n_embd")
    facts = {name: {size: of[size] for size in sizes} for name, of in config.items()}
    body = (HERE / "controls.html").read_text(encoding="utf-8")
    body += _held("lm", (WEIGHTS / "lm" / "model.safetensors").read_bytes())
    body += _held("judge", (WEIGHTS / "stars" / "model.safetensors").read_bytes())
    told = json.dumps(facts | {"vocabulary": vocabulary}).replace("<", "\\u003c")
    body += f'<script type="application/json" id="facts">{told}</script>\n'
    scripts = [
        (HERE / f"{name}.js").read_text("utf-8") for name in ("storybook", "sampler", "page")
    ]
    script = re.sub(r"^export ", "", "\n".join(scripts), flags=re.MULTILINE)
    empty = {"header": {}} | {f"page{i}": b"" for i in range(16)}
    view = ParticleView._esm, ParticleView._css
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(
        path,
        title="tsmc_widgets: try it here",
        parts=[Part(*view, {0: empty})],
        run=0,
        body=body,
        script=script,
        style=STYLE,
    )
