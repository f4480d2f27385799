"""Lessons as a person takes them: predict, watch, read the number; here without a kernel."""

import re

import pytest

from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.watch import PRESETS, write_lessons

pytestmark = pytest.mark.browser

TOYS = {name: PRESETS[name] for name in ("Three texts", "The best twist weighs")}


def predict(page, choice):
    """Choose an answer, and wait until the run has come to the step of the question."""
    page.get_by_role("button", name=choice, exact=True).click()
    page.get_by_role("button", name="Ask again").wait_for()
    return page.locator(".pv-answer").inner_text()


@pytest.fixture
def course(page, tmp_path):
    """Function that writes lessons and opens the file, offline."""

    def open_lessons(presets):
        page.context.set_offline(True)
        page.goto(write_lessons(tmp_path / "lessons.html", presets).as_uri())
        page.locator(".pv-row").first.wait_for(state="attached")
        page.get_by_label("Speed, steps a second").select_option("30")

    return open_lessons


def test_two_lessons_of_a_file(course, page):
    course(TOYS)
    heading = page.get_by_role("heading", name=re.compile("Lesson"))
    assert heading.inner_text() == "Lesson 1 of 2: Three texts"
    readout = page.locator("output")
    assert readout.inner_text() == "step 0 of 5"
    # What is asked is not seen before it was predicted.
    assert page.locator(".pv-strip canvas:visible").count() == 0
    said = predict(page, "about a half")
    assert said.startswith("The answer is “over two thirds”. Largest weight: 87 % after step 5. ")
    assert readout.inner_text() == "step 5 of 5"
    assert page.locator(".pv-strip canvas:visible").count() == 5
    assert page.locator(".pv-spot").evaluate_all("all => all.map(each => each.className)") == [
        "pv-scroller pv-spot"
    ]
    # Rows are drawn with the next frame.
    page.locator(".pv-row .pv-head", has_text="87 %").wait_for()
    shown = page.locator(".pv-row .pv-head").all_inner_texts()
    assert sorted(re.findall(r"[\d.]+ %", " ".join(shown))) == ["1.6 %", "12 %", "87 %"]

    page.get_by_role("button", name="Ask again").click()
    assert readout.inner_text() == "step 0 of 5"
    assert page.locator(".pv-answer").inner_text() == ""
    assert predict(page, "over two thirds").startswith("As you predicted. ")

    page.get_by_role("button", name="Next lesson").click()
    page.get_by_text("Lesson 2 of 2: The best twist weighs").wait_for()
    assert page.get_by_role("button", name="Next lesson").is_hidden()
    assert "ESS: 25.4 of 64 after step 4." in predict(page, "more than 60")
    assert readout.inner_text() == "step 4 of 5"
    assert page.locator(".pv-strip-loss.pv-spot").count() == 1


@pytest.mark.slow
def test_all_ten_lessons_of_a_file(course, page):
    course(PRESETS)
    for number, (name, preset) in enumerate(PRESETS.items(), 1):
        page.get_by_text(f"Lesson {number} of 10: {name}").wait_for()
        assert preset.text in predict(page, preset.choices[0][0])
        if number < 10:
            page.get_by_role("button", name="Next lesson").click()


def test_the_question_waits_for_the_run(open_view, send, page, make_trace):
    """The number comes from the run on show: here the ESS at step 4 of a made-up one."""
    lesson = PRESETS["Why SIS fails"].traits("a", 1, 3) | {"since": 0, "step": 4}
    view = ParticleView(make_trace(K=8, T=6, done=3))
    open_view(view)
    tell = "lesson => { model.set('lesson', lesson); }"
    page.evaluate(tell, lesson | {"choices": [["low", None], ["high", 4.0]]})
    assert page.get_by_role("button", name="low").is_disabled()
    trace = make_trace(K=8, T=6)
    view.update(trace)
    send(view)
    assert page.locator("output").inner_text() == "step 0 of 6"
    ess = float(trace.columns.ess[0][3])
    said = predict(page, "high")
    assert f"ESS: {ess:.1f} of 8 after step 4." in said
    assert said.startswith("As you predicted") == (ess >= 4)
    assert page.evaluate("model.state.lessons_done") is None
    page.get_by_role("button", name="Next lesson").click()
    assert page.evaluate("model.state.lessons_done") == 1
    page.evaluate(tell, {})
    assert page.locator(".pv-tour").is_hidden()
    assert page.locator(".pv-shade, .pv-spot").count() == 0
