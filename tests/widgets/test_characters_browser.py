"""Characters of several tokens in Chromium: a random model of bytes that writes what it must."""

import pytest
from models.checkpoints import byte_tokenizer, make_checkpoint

import tsmc_widgets as tw
from tsmc_widgets.widgets.particle_view import ParticleView
from view_support import draw_after, row, row_texts

pytestmark = pytest.mark.browser

TEXT = "🙂 fox1 שם"


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    lm = tw.load_language_model(make_checkpoint("llama", folder, tokenizer=byte_tokenizer()))
    phi = tw.Grammar(f'start: "{TEXT}"')
    target = tw.Target(lm, phi, prompt="The", num_steps=16, eos="absorb")
    twist = tw.LookAheadTwist(target)
    return tw.run_smc(
        target, num_particles=32, twist=twist, proposal=tw.TwistInduced(), top_k=4, seed=0
    )


def test_cells_show_them_whole_where_they_complete(open_view, trace):
    page = open_view(ParticleView(trace))
    for slot in range(3):
        words = row_texts(page, slot)
        assert words[:4] == ["◌", "◌", "◌", "🙂"]
        letters = [word for word in words if word not in ("◌", "␣", "∎")]
        assert "".join(letters).replace("‿", "") == "🙂fox1שם"
        # " f" or "␣", "f": the letters that follow it go on.
        assert "x" not in letters
        assert "‿ם" in letters
        assert "1" in letters
    cells = row(page, 0).locator(".pv-cell")
    assert "a later token may complete" in cells.nth(0).get_attribute("title")
    draw_after(page, cells.nth(3).click)
    assert page.locator(".pv-inspected strong").inner_text() == "🙂"
    assert page.locator(".pv-next .pv-chosen th").inner_text().endswith("🙂")
    assert "◌" in page.locator(".pv-inspected .pv-context").inner_text()
    draw_after(page, cells.nth(len(row_texts(page, 0)) - 2).click)
    assert "🙂 fox1 ש" in page.locator(".pv-inspected").inner_text()


def test_tables_show_them_too(open_view, trace):
    page = open_view(ParticleView(trace))
    assert page.locator(".pv-samples td bdi").first.inner_text() == TEXT
