"""A type checker finds nothing wrong with the code of the tour."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tour_has_the_types_it_should(tmp_path):
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    tour = tmp_path / "tour.py"
    tour.write_text("\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", str(tour)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    # abs() of a float or tensor has a type that no comparison takes.
    assert [line for line in found if not line.endswith("[operator]")] == [], done.stderr
    assert "checked 1 source file" in done.stdout or "in 1 source file" in done.stdout
