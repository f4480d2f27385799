"""The main notebook as an app: Voila serves it, and the particle view works in it."""

import asyncio
import http.client
import json
import os
import re
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace
from uuid import uuid4

import nbformat
import pytest
from jupyter_server.services.kernels.connection.base import (
    deserialize_msg_from_ws_v1,
    serialize_msg_to_ws_v1,
)
from notebook_support import first_live_cell
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

from browser_support import TOKEN, voila_app
from tsmc_widgets import __main__ as program
from tsmc_widgets.widgets.factor_editor import START

PROTOCOL = "v1.kernel.websocket.jupyter.org"  # That of real pages: it carries buffers.
VIEW = "document.querySelector('.pv')"


KERNEL = "/api/kernels/01234567-0123-0123-0123-0123456789ab"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Port of the app on an empty notebook."""
    home = tmp_path_factory.mktemp("app")
    empty = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("0")])
    nbformat.write(empty, home / "empty.ipynb")
    with voila_app(home, home / "empty.ipynb") as url:
        yield int(url.rpartition(":")[2])


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "127.0.0.1", 302),  # to the page that asks for the token
        ("/?token=another", "127.0.0.1", 302),
        (KERNEL, "127.0.0.1", 403),
        (f"{KERNEL}/channels", "127.0.0.1", 403),
        (KERNEL.replace("api/kernels", "voila/execution"), "127.0.0.1", 403),
        (f"{KERNEL}?token={TOKEN}", "127.0.0.1", 404),  # let in: there is no such kernel
        (f"{KERNEL}?token={TOKEN}", "localhost", 404),
        (f"{KERNEL}?token={TOKEN}", "rebound.example", 403),
        (f"{KERNEL}/channels?token={TOKEN}", "rebound.example", 403),
        (f"/?token={TOKEN}", "rebound.example", 403),
    ],
)
def test_app_asks_for_its_token_and_answers_to_no_foreign_name(served, path, host, status):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="}  # fmt: skip
    socket = "channels" in path or "execution" in path
    there = http.client.HTTPConnection("127.0.0.1", served, timeout=30)
    there.request("GET", path, headers={"Host": host, **(upgrade if socket else {})})
    assert there.getresponse().status == status
    there.close()


def message(kind, metadata=None, **content):
    """What a page sends to the kernel."""
    header = {"msg_id": uuid4().hex, "msg_type": kind, "session": "visitor", "username": "visitor",
              "version": "5.3", "date": "2026-01-01T00:00:00Z"}  # fmt: skip
    parts = [json.dumps(each).encode() for each in (header, {}, metadata or {}, content)]
    return serialize_msg_to_ws_v1(parts, "shell")


async def said(link, seconds):
    """Type and content of the next message of the kernel."""
    answer = await asyncio.wait_for(link.read_message(), seconds)
    header, _, _, content = map(json.loads, deserialize_msg_from_ws_v1(answer)[1][:4])
    return header["msg_type"], content


async def connect(port):
    """The socket of a page that has just been opened, its cells run."""
    page = await AsyncHTTPClient().fetch(
        f"http://127.0.0.1:{port}/?token={TOKEN}", request_timeout=120
    )
    kernel = re.search(r'kernel_?id"?:\s*"([\w-]{36})', page.body.decode(), re.IGNORECASE)[1]
    server = f"ws://127.0.0.1:{port}"
    runner = await websocket_connect(f"{server}/voila/execution/{kernel}?token={TOKEN}")
    await runner.read_message()
    await runner.write_message(json.dumps({"action": "execute", "payload": {"kernel_id": kernel}}))
    shown = json.loads(await asyncio.wait_for(runner.read_message(), 120))
    assert not any("ename" in each for each in shown["payload"]["output_cell"].get("outputs", []))
    channels = f"{server}/api/kernels/{kernel}/channels?token={TOKEN}"
    return await websocket_connect(channels, subprotocols=[PROTOCOL])


async def tell(link, told):
    """Send a message."""
    await link.write_message(told, binary=True)


async def ask(link, kind):
    """All that the kernel says until it has answered this, and then is silent for a second."""
    await tell(link, message(kind))
    heard, answered = [], False
    while True:
        try:
            heard.append(await said(link, 1 if answered else 120))
        except TimeoutError:
            return heard
        answered = answered or heard[-1][0] == kind.replace("request", "reply")


def test_a_visitor_sends_no_code_to_the_kernel(served, tmp_path):
    async def visit():
        link = await connect(served)
        code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
        await tell(link, message("execute_request", code=code, silent=False))
        assert "execute_reply" not in [kind for kind, _ in await ask(link, "kernel_info_request")]
        link.close()

    asyncio.run(visit())
    assert list(tmp_path.iterdir()) == []


FORGED = {"cellId": "cell"}


def to_widget(comm, **data):
    """A message for a widget, as if a cell of the notebook sent it."""
    return message("comm_msg", FORGED, comm_id=comm, data=data)


async def states(link):
    """What each widget of the page holds."""
    heard = await ask(link, "comm_info_request")
    [reply] = [content for kind, content in heard if kind == "comm_info_reply"]
    found = {}
    for comm in reply["comms"]:
        await tell(link, to_widget(comm, method="request_state"))
    for kind, content in await ask(link, "kernel_info_request"):
        if kind == "comm_msg" and "state" in content["data"]:
            found.setdefault(content["comm_id"], {}).update(content["data"]["state"])
    return found


def a_text(code):
    """A message that opens a field of text with code in it."""
    kind = {}
    for part in ("model", "view"):
        kind[f"_{part}_name"] = f"Textarea{part.capitalize()}"
        kind[f"_{part}_module"] = "@jupyter-widgets/controls"
        kind[f"_{part}_module_version"] = "2.0.0"
    data = {"state": {**kind, "value": code}}
    return message("comm_open", {**FORGED, "version": "2.1.0"}, comm_id=uuid4().hex,
                   target_name="jupyter.widget", data=data)  # fmt: skip


@pytest.mark.slow
def test_the_app_has_no_editor_and_no_message_makes_or_reaches_one(tmp_path):
    """Each widget of the page is told code, by every name that some widget has for a value."""
    home = tmp_path / "home"
    home.mkdir()
    cell = (
        "import tsmc_widgets as tw\ntw.register_function(len, name='length')\n"
        "tw.Workbench(dict(name='own', model='table:rainy-week', prompt='sun', num_steps=2,\n"
        "    potential=[dict(kind='TextFunction', function='length')]), num_particles=2)"
    )
    cells = [nbformat.v4.new_code_cell(cell, id="cell")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "page.ipynb")
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\ndef log_phi(text): return 0\n"

    async def visit(port):
        link = await connect(port)
        before = await states(link)
        assert len(before) > 50
        # The menu's row of a Python function, added by a message that pretends to run a cell.
        [menu] = [comm for comm, state in before.items()
                  if "a Python function" in state.get("_options_labels", ())]  # fmt: skip
        place = before[menu]["_options_labels"].index("a Python function")
        await tell(link, to_widget(menu, method="update", state={"index": place}, buffer_paths=[]))
        await tell(link, a_text(code))
        now = await states(link)
        assert len(now) > len(before)
        for comm, state in now.items():
            for name in {"value", "code", "text", "share", "ask", "description"} & state.keys():
                value = {"act": code, "n": 1, "code": code} if name in ("ask", "share") else code
                told = to_widget(comm, method="update", state={name: value}, buffer_paths=[])
                await tell(link, told)
            # Not the lessons and the debugger, which would keep the kernel busy.
            if not re.match(r"\d|Debug", state.get("description") or ""):
                await tell(link, to_widget(comm, method="custom", content={"event": "click"}))
        after = await states(link)
        assert "rules a text out" in START
        assert not any("rules a text out" in str(state) for state in now.values())
        editors = [s for s in after.values() if s.get("_model_name") == "TextareaModel"]
        assert [state["value"] for state in editors] == [code]  # The one that it opened itself.
        link.close()

    everything = "--ZMQChannelsWebsocketConnection.limit_rate=False"  # 276 states come at once.
    with voila_app(home, tmp_path / "page.ipynb", everything) as url:
        asyncio.run(visit(int(url.rpartition(":")[2])))
    assert not ran.exists()


@pytest.mark.slow
@pytest.mark.browser
def test_a_person_scrubs_the_app(page, tmp_path):
    """The page itself fails the test where anything is asked of another machine."""
    home = tmp_path / "home"
    home.mkdir()
    with voila_app(home, first_live_cell(program.notebooks() / program.APP, tmp_path)) as url:
        page.set_default_timeout(120_000)
        page.goto(f"{url}/?token={TOKEN}")
        page.wait_for_selector(".pv-status[data-state='done']")
        assert page.locator(".jp-InputArea-editor:visible").count() == 0
        last = page.evaluate(f"{VIEW}._stats.steps")
        page.locator(".pv-scroller").first.focus()
        for key, step in [("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", last)]:
            page.keyboard.press(key)
            page.wait_for_function(f"{VIEW}._stats.t === {step}")
        assert page.locator(".pv-lost").first.is_hidden()
        page.close()


def test_browser_is_handed_the_token_by_a_private_file(monkeypatch, tmp_path):
    pages = []
    monkeypatch.setattr("webbrowser.open", lambda uri, **_: pages.append(uri))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = spec_from_file_location("serve", program.notebooks() / "voila" / "serve.py")
    serve = module_from_spec(found)
    found.loader.exec_module(serve)
    app = serve.App(port=1234, ip="127.0.0.1")
    app.identity_provider = SimpleNamespace(token=TOKEN)
    app.launch_browser()
    (page,) = tmp_path.iterdir()
    assert pages == [page.as_uri()]
    assert f"http://127.0.0.1:1234/?token={TOKEN}" in page.read_text()
    assert os.name == "nt" or page.stat().st_mode & 0o077 == 0
