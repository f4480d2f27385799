"""The main notebook as an app: Voila serves it, and the particle view works in it."""

import asyncio
import http.client
import json
import os
import re
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import nbformat
import pytest
from notebook_support import first_live_cell
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

from browser_support import TOKEN, voila_app
from tsmc_widgets import __main__ as program

VIEW = "document.querySelector('.pv')"


@pytest.fixture
def live_part(tmp_path):
    """A copy of the app's notebook."""
    return first_live_cell(program.notebooks() / program.APP, tmp_path)


KERNEL = "/api/kernels/01234567-0123-0123-0123-0123456789ab"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Port of the app on an empty notebook."""
    home = tmp_path_factory.mktemp("app")
    nbformat.write(nbformat.v4.new_notebook(), home / "empty.ipynb")
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


def test_a_visitor_sends_no_code_to_the_kernel(served, tmp_path):
    def message(kind, **content):
        header = {"msg_id": kind, "msg_type": kind, "session": "visitor", "username": "visitor",
                  "version": "5.3", "date": "2026-01-01T00:00:00Z"}  # fmt: skip
        return json.dumps({"header": header, "parent_header": {}, "metadata": {},
                           "content": content, "channel": "shell", "buffers": []})  # fmt: skip

    async def visit():
        page = await AsyncHTTPClient().fetch(
            f"http://127.0.0.1:{served}/?token={TOKEN}", request_timeout=60
        )
        kernel = re.search(r'kernel_?id"?:\s*"([\w-]{36})', page.body.decode(), re.IGNORECASE)[1]
        link = await websocket_connect(
            f"ws://127.0.0.1:{served}/api/kernels/{kernel}/channels?token={TOKEN}"
        )
        code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
        await link.write_message(message("execute_request", code=code, silent=False))
        await link.write_message(message("kernel_info_request"))
        answer = ""
        while "kernel_info_reply" not in answer:
            answer = str(await asyncio.wait_for(link.read_message(), 30))
            assert "execute_reply" not in answer
        link.close()

    asyncio.run(visit())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.browser
def test_a_person_scrubs_the_app(page, tmp_path, live_part):
    """The page itself fails the test where anything is asked of another machine."""
    home = tmp_path / "home"
    home.mkdir()
    with voila_app(home, live_part) as url:
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
