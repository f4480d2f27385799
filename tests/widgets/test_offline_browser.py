"""The page that a view writes: whole, closed to the world, and alive without a kernel."""

import re

import pytest

from browser_support import accessibility_faults
from tsmc_widgets.widgets.particle_view import ParticleView

pytestmark = pytest.mark.browser

TITLE = "<b>&amp; title</title><script>globalThis.hacked=1</script>"


def at_step(page, text):
    page.locator("output", has_text=re.compile(f"^{text}$")).wait_for()


def test_the_file_plays_offline_and_asks_for_nothing(visit, page, make_trace):
    path, requests = visit(ParticleView(make_trace(K=64, T=24)))
    assert requests == [path.as_uri()]
    at_step(page, "step 24 of 24")
    page.locator(".pv-scroller").focus()
    page.keyboard.press("Home")
    at_step(page, "step 0 of 24")
    page.keyboard.press("ArrowRight")
    at_step(page, "step 1 of 24")
    page.get_by_label("Speed, steps a second").select_option("30")
    page.get_by_role("button", name="Play").click()
    at_step(page, "step 24 of 24")
    assert requests == [path.as_uri()]
    assert page.locator(".pv-lost").is_hidden()


def test_nothing_in_it_becomes_markup(visit, page, evil_trace):
    path, _ = visit(ParticleView(evil_trace, run=1), title=TITLE)
    assert page.title() == TITLE
    assert page.locator("script").count() == 2
    assert page.locator("main img, main script").count() == 0
    assert "</script>" in page.text_content(".pv-rows")
    page.locator(".pv-cell").first.hover()
    page.locator(".pv-next tbody tr").first.wait_for()
    assert page.evaluate("globalThis.hacked") is None
    written = path.read_text("utf-8")
    assert written.count("<script") == 2
    assert "日本" in page.text_content(".pv-prompt")


def test_its_policy_forbids_all_that_is_not_in_it(visit, page, make_trace):
    path, _ = visit(ParticleView(make_trace(K=4, T=3)))
    policy = re.search(r'Policy" content="([^"]*)"', path.read_text("utf-8")).group(1)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    blocked = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'globalThis.hacked = 1';
            document.body.append(script);
        })"""
    )
    assert blocked.startswith("script-src")
    assert page.evaluate("globalThis.hacked") is None


def test_every_run_is_in_it(visit, page, evil_trace):
    visit(ParticleView(evil_trace, run=1))
    menu = page.get_by_label("Run shown")
    assert menu.input_value() == "1"
    for run in (2, 0):
        menu.select_option(str(run))
        expected = float(evil_trace.columns.log_z[run, -1])
        shown = page.locator(".pv-strip-logz .pv-strip-value", has_text=f"{abs(expected):.2f} nats")
        shown.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_element_shuts_anybody_out(visit, page, evil_trace, scheme):
    page.emulate_media(color_scheme=scheme)
    visit(ParticleView(evil_trace, run=1))
    page.locator(".pv-cell").first.hover()
    assert accessibility_faults(page) == []


def test_the_theme_is_the_systems(visit, page, make_trace):
    page.emulate_media(color_scheme="dark")
    visit(ParticleView(make_trace(K=4, T=3)))
    background = "getComputedStyle(document.querySelector('.pv')).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    page.locator(".pv[style*='color-scheme: light']").wait_for()
    assert page.evaluate(background) != dark


def test_an_existing_file_is_replaced_whole(tmp_path, make_trace, monkeypatch):
    path = tmp_path / "run.html"
    path.write_text("before")
    view = ParticleView(make_trace(K=4, T=3))

    def fails(self, *args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", fails)
        with pytest.raises(OSError, match="disk full"):
            view.to_html(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    assert view.to_html(path) == path
    assert path.read_text().startswith("<!doctype html>")
