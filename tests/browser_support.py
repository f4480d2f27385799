"""A real browser and a real JupyterLab for tests.

`page` is a blank page that fails its test on a script error or on a request that leaves the
machine. `open_notebook(path)` shows a copy of a notebook in a JupyterLab of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import dev

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
TOKEN = "token-of-the-tests"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
NOTEBOOK_SHOWN = "name => jupyterapp.shell.currentWidget?.context?.path === name"
KERNEL_IDLE = """() => {
    const kernel = jupyterapp.shell.currentWidget.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
NO_CHROMIUM = "no Chromium: put `chromium` on PATH or its path in TSMC_CHROMIUM"


def leaves_machine(url):
    """Whether a request to this address goes to another machine."""
    parts = urlsplit(url)
    return parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname not in LOOPBACK


@pytest.fixture(scope="session")
def chromium():
    """Path of Chromium; without one the test is skipped, in CI it fails."""
    path = dev.find_chromium()
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_CHROMIUM)
    return path


# Not for the session: an open Playwright keeps an event loop running in the test thread, and
# code under test that calls asyncio.run would then fail in later modules.
@pytest.fixture(scope="module")
def browser(chromium):
    """One Chromium for the tests of a module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@contextmanager
def watched_page(browser):
    """A blank page with no storage; at its end, script errors and outside requests raise."""
    context = browser.new_context(
        reduced_motion="reduce", viewport={"width": 1280, "height": 900}, accept_downloads=True
    )
    problems = []

    def note_request(request):
        if leaves_machine(request.url):
            problems.append(f"request off loopback: {request.url}")

    context.on("weberror", lambda error: problems.append(f"script error: {error.error}"))
    context.on("request", note_request)
    context.on("page", lambda page: page.on("websocket", note_request))
    try:
        yield context.new_page()
    finally:
        context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def page(browser):
    """A blank page, which fails the test on script errors and on requests off the machine."""
    with watched_page(browser) as page:
        yield page


def accessibility_faults(page):
    """What axe-core finds serious or critical on a page: the rule and the elements."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{found['id']}: {', '.join(node['html'] for node in found['nodes'])}"
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def lab_environment(home):
    """Environment in which Jupyter reads and writes nothing of the user's own."""
    folders = {
        name: home / name.lower()
        for name in [
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        ]
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    settings = folders["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    return os.environ | {name: str(folder) for name, folder in folders.items()}


def wait_until_served(url, server, log, timeout=60.0):
    """Return when the server answers; fail with its log when it ends or stays silent."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/status", timeout=5).close()
        except urllib.error.HTTPError:
            return  # Voila has no such page, but it is there to say so.
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"nothing answers at {url}:\n{log.read_text()}")


def end_group(server):
    """End the server and the kernels that it started."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(server.pid)], capture_output=True)
    else:
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if os.name != "nt":
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def jupyter_lab(home, notebook_dir):
    """Serve a folder with a JupyterLab of its own; gives its address, without a final slash.

    Args:
        home: An empty folder for settings, kernels' files and the log.
        notebook_dir: The folder to serve.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": notebook_dir,
        "ServerApp.open_browser": False,
        # So that a server whose test was killed ends by itself.
        "ServerApp.shutdown_no_activity_timeout": 600,
        "MappingKernelManager.cull_idle_timeout": 300,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
    }
    command = [sys.executable, "-m", "jupyterlab"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with served(url, command, lab_environment(home), home / "jupyterlab.log"):
        yield url


@contextmanager
def voila_app(home, notebook, *settings):
    """Serve a notebook as `dev.py app` does, with ``TOKEN``; gives its address, without a slash.

    Args:
        home: An empty folder for settings, kernels' files and the log.
        notebook: The file to serve.
        settings: More options of the server.
    """
    from tsmc_widgets import __main__ as program

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = [f"--Voila.port={port}", "--Voila.port_retries=0", "--no-browser", *settings]
    command = program.app_command(notebook, options)
    environment = lab_environment(home)
    environment["JUPYTER_PATH"] = program.app_path(environment)
    environment["JUPYTER_TOKEN"] = TOKEN
    with served(url, command, environment, home / "voila.log"):
        yield url


@contextmanager
def served(url, command, environment, log):
    """Run a server, with its output in a log, from when it answers to the end of the block."""
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_served(url, server, log)
            yield
        finally:
            end_group(server)


def execute_command(page, command, **arguments):
    """Run a JupyterLab command, as its menus would, and wait for it to end."""
    page.evaluate(
        "([name, given]) => jupyterapp.commands.execute(name, given).then(() => null)",
        [command, arguments],
    )


def run_all_cells(page):
    """Run the shown notebook from the top and wait until its last cell has ended."""
    execute_command(page, "notebook:run-all-cells")


def copy_with_kernel(notebook, folder):
    """Copy a notebook; one that names no kernel would make JupyterLab ask for it."""
    content = json.loads(Path(notebook).read_text(encoding="utf-8"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content["metadata"].setdefault("kernelspec", kernel)
    copy = folder / Path(notebook).name
    copy.write_text(json.dumps(content), encoding="utf-8")
    return copy


@pytest.fixture
def open_notebook(page, tmp_path):
    """Function that shows a copy of a notebook in JupyterLab and returns the page.

    The kernel is ready when it returns; nothing has been run.
    """
    with ExitStack() as servers:

        def open_copy(notebook):
            folder = tmp_path / "notebooks"
            folder.mkdir()
            copy = copy_with_kernel(notebook, folder)
            url = servers.enter_context(jupyter_lab(tmp_path, folder))
            page.goto(f"{url}/lab/tree/{copy.name}?reset")
            page.wait_for_function("globalThis.jupyterapp !== undefined")
            page.evaluate("jupyterapp.restored.then(() => null)")
            page.wait_for_function(NOTEBOOK_SHOWN, arg=copy.name)
            page.wait_for_function(KERNEL_IDLE)
            return page

        yield open_copy
