"""The menu that takes a run along: its files are read as what they say they are."""

import json
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from tsmc_widgets.widgets.particle_view import ParticleView

pytestmark = pytest.mark.browser

GIVEN = {"code": "print('<b>&')\n", "spec": '{"problem": "rainy-week"}'}


def press(page, name):
    page.get_by_text("Share", exact=True).click()
    page.get_by_role("button", name=name).click()


def fetch(page, name):
    """The file that an entry of the menu hands to the browser."""
    with page.expect_download() as waiting:
        press(page, name)
    return waiting.value


def test_a_person_takes_figure_spec_and_code_along(visit, page, make_trace):
    """In the exported page, whose policy forbids what is not in it."""
    view = ParticleView(make_trace(K=16, T=8))
    view.share = GIVEN
    visit(view)
    spec = fetch(page, "Spec as JSON")
    assert spec.suggested_filename == "run.json"
    assert json.loads(spec.path().read_text("utf-8")) == {"problem": "rainy-week"}

    drawn = ElementTree.parse(fetch(page, "Figure as SVG").path()).getroot()
    words = "".join(drawn.itertext())
    for said in ("I bought this", "Effective sample size (ESS): ", "log Ẑ", "Where weight is lost"):
        assert said in words
    assert len(drawn.findall(".//{*}image")) == 1
    assert "rgba" not in "".join(
        value for node in drawn.iter() for value in node.attrib.values() if len(value) < 1000
    )

    picture = Image.open(fetch(page, "Figure as PNG").path()).convert("RGB")
    width, height = (float(v) for v in drawn.attrib["viewBox"].split()[2:])
    assert picture.size == (2 * width, 2 * height)
    assert len(picture.getcolors(1 << 20)) > 50

    press(page, "Show code")
    assert page.locator(".pv-code").inner_text().strip() == GIVEN["code"].strip()
    page.get_by_text("Share", exact=True).click()
    assert page.get_by_role("button", name="Page as HTML").is_hidden()
    page.keyboard.press("Escape")
    assert page.get_by_role("button", name="Spec as JSON").is_hidden()


def test_the_page_comes_from_python_as_bytes(open_view, page, make_trace):
    view = ParticleView(make_trace(K=4, T=3))
    sent = []
    view.send = lambda content, buffers: sent.append((content, buffers))
    open_view(view)
    assert page.get_by_role("button", name="Copy as code").count() == 0
    press(page, "Page as HTML")
    asked = page.evaluate("model.state.pages")
    view._handle_msg(
        {"content": {"data": {"method": "update", "state": {"pages": asked}}}, "buffers": []}
    )
    [(content, [written])] = sent
    assert re.match(b"<!doctype html>", written)
    with page.expect_download() as waiting:
        page.evaluate(
            """([content, text]) => {
                const bytes = new DataView(new TextEncoder().encode(text).buffer);
                model.handlers['msg:custom'].forEach(act => act(content, [bytes]));
            }""",
            [content, written.decode()],
        )
    assert waiting.value.suggested_filename == "run.html"
    assert waiting.value.path().read_bytes() == written
