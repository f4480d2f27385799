"""The twist debugger as a page: its stages, its messages, its file, and its views in a browser."""

import json
import math

import pytest
import torch
from evaluation.plants import Changed, constant, powered, random_toy
from smc.toys import TablePhi

import tsmc_widgets as tw
from tsmc_widgets.evaluation.estimates import frame_of
from tsmc_widgets.figures import power_figure
from tsmc_widgets.smc.api import SMCSession
from tsmc_widgets.widgets import twist_debugger


@pytest.fixture(scope="module")
def target():
    return random_toy()


@pytest.fixture(scope="module")
def best(target):
    return tw.exact(target).optimal_twist()


@pytest.fixture(scope="module")
def debugger(target, best):
    page = tw.TwistDebugger(target, Changed(target, best, powered(3)), best)
    assert page.wait(120)
    yield page
    page.close()


def test_the_page_shows_the_report(debugger, target):
    data = debugger.view.data
    assert debugger.view.status["state"] == "done"
    assert debugger.live.publish_error is None
    first = data["verdict"][0]
    assert first["text"].startswith("Overconfident")
    assert first["view"] == "what if"
    assert first["defect"]
    assert "Against: No defect found." in [each["text"] for each in data["verdict"]]
    names = [chart["name"] for chart in data["charts"]["where"]]
    assert names == ["bellman", "variance", "ess", "ancestors", "kl"]
    frame = debugger.report.frame
    bellman = data["charts"]["where"][0]
    assert bellman["lines"][0]["y"] == pytest.approx(frame["bellman"].tolist())
    assert bellman["levels"][0]["value"] == 1 / 5
    assert [line["who"] for line in bellman["lines"]] == ["ψ", "against"]
    powers = data["charts"]["what if"]
    assert powers[0]["mark"] == 0.25
    assert debugger.particles.trace is debugger.report.trace
    assert debugger.particles.group == debugger.view.group != ""
    assert len(data["points"]) == len(debugger.report.prefixes)
    assert data["worst"][0]["rollouts"]
    json.dumps(data, allow_nan=False)


def test_a_fork_shows_both_futures(debugger):
    made = debugger.fork_at(2, 3, 1)
    before, after = debugger.forks.children
    assert before.trace is made.before
    assert after.trace is made.after
    assert debugger.view.data["fork"]["rows"][0][1] in ("drawn", "forced")
    debugger.view.ask = {"act": "fork", "n": 5, "particle": 99, "text": "a"}
    assert "particle must be" in debugger.view.status["error"]
    debugger.view.ask = {"act": "fork", "n": 6, "particle": 0, "text": "ab"}
    assert "token must be one token" in debugger.view.status["error"]


def test_a_run_keeps_its_problem_twist_and_noise(target, best):
    twist = Changed(target, best, constant)
    session = tw.start_smc(target, num_particles=8, twist=twist, proposal=tw.TwistInduced(), seed=7)
    page = tw.TwistDebugger.from_run(session)
    session.run()
    assert page.wait(120)
    assert page.report.defects == ["constant"]
    trace = page.report.trace
    assert (trace.num_runs, trace.num_particles, trace.info.seed) == (8, 8, 7)
    assert torch.equal(trace.columns.tokens[0], session.trace.columns.tokens[0])
    page.close()
    with pytest.raises(ValueError, match="no twist to debug"):
        tw.TwistDebugger.from_run(tw.start_smc(target, num_particles=4))
    assert isinstance(session, SMCSession)


def test_the_button_of_a_workbench_opens_the_debugger_of_its_run(opened):
    workbench = opened(tw.Workbench)
    workbench.debug_button.click()
    shown = workbench.children[-1]
    assert isinstance(shown, tw.TwistDebugger), workbench.refusal.value
    # The first view is enough here: all else takes a minute.
    assert any(shown.report or shown.wait(0.1) for _ in range(1200))
    own, trace = workbench.session.trace, shown.report.trace
    assert torch.equal(trace.columns.tokens[0], own.columns.tokens[0])
    workbench.debug_button.click()
    assert [isinstance(each, tw.TwistDebugger) for each in workbench.children].count(True) == 1


def test_what_cannot_be_measured_is_said_on_the_page(target):
    page = tw.TwistDebugger(target, tw.TableTwist.random(4, 5, seed=0, prompt_length=1))
    with pytest.raises(ValueError, match="the twist has 4 tokens"):
        page.wait(60)
    assert "the twist has 4 tokens and the base model 3" in page.view.status["error"]
    with pytest.raises(ValueError, match="nothing has been measured"):
        page.to_html("nowhere.html")
    page.close()


def broken_twist(target):
    def broken(log_psi, begun, before):
        return log_psi if begun.shape[1] != 2 else log_psi + torch.tensor([0, math.nan, 0])

    return target, Changed(target, tw.exact(target).optimal_twist(), broken)


def dead_target(target):
    nothing = target.with_potential(TablePhi(torch.full((3,) * 5, -math.inf).double()))
    return nothing, tw.exact(target).optimal_twist()


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        (broken_twist, "not finite", "NaN at step 3, after the text 'a"),
        (dead_target, "dead target", "No sequence has φ > 0"),
    ],
)
def test_what_is_broken_is_named_and_all_else_is_shown(case, code, said, target, tmp_path):
    page = tw.TwistDebugger(*case(target))
    assert page.wait(120)
    assert page.view.status["state"] == "done", page.view.status
    assert page.report.defects[0] == code
    assert said in page.view.data["verdict"][0]["text"]
    where = page.view.data["charts"]["where"]
    assert {"bellman", "variance", "ess", "ancestors"} <= {chart["name"] for chart in where}
    assert page.particles.trace.num_particles == 32
    json.dumps(page.view.data, allow_nan=False)
    assert page.to_html(tmp_path / "broken.html").stat().st_size > 1000
    assert power_figure(frame_of(page.run.powers)).data
    page.close()


def test_a_budget_ends_rollouts():
    lm = tw.TabularLM.random(8, 7, seed=0)
    phi = tw.TokenFunction(lambda tokens: (tokens == 1).sum(1).double())
    target = tw.Target(lm, phi, prompt=[0], num_steps=6)
    page = tw.TwistDebugger(target, tw.LookAheadTwist(target), budget=2000)
    assert page.wait(120)
    assert 2000 <= page.run.spent < 40_000
    assert len(page.report.families) < 5
    page.close()


@pytest.mark.browser
def test_every_view_in_a_browser(debugger, page, tmp_path):
    requests = []
    debugger.fork_at(2, 3, 1)
    page.on("request", lambda request: requests.append(request.url))
    path = debugger.to_html(tmp_path / "debug.html")
    page.goto(path.as_uri())
    page.locator(".td-verdict li").first.wait_for()
    assert page.locator(".td-defect").first.inner_text().startswith("Overconfident")
    for name in ("Where", "Which tokens", "How", "What if"):
        assert page.get_by_role("region", name=name).is_visible()
    where = page.get_by_role("region", name="Where").locator("canvas")
    assert where.count() == 5
    where.first.click(position={"x": 50, "y": 40})
    # The run and both futures of the fork move along.
    page.locator(".pv-transport", has_text="step 1 of 5").nth(2).wait_for()
    assert "step 1:" in where.first.get_attribute("aria-label")
    assert ", exact" in where.last.get_attribute("aria-label")
    page.locator(".td-link").first.click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "What if"
    page.locator(".td-table tbody tr").first.click()
    step = page.locator(".td-table tbody td").first.inner_text()
    page.locator(".pv-transport", has_text=f"step {step} of 5").nth(2).wait_for()
    assert page.locator(".td-token").count() >= 10
    assert page.locator(".td-fork tbody tr").count() >= 2
    for name in ("as it went", "with the token forced"):
        assert page.get_by_text(name).first.is_visible()
    page.locator("summary").first.click()
    assert "log φ" in page.locator(".td-table details li").first.inner_text()
    assert requests == [path.as_uri()]


def test_a_large_model_has_a_first_view_of_few_particles(target, best, monkeypatch):
    monkeypatch.setattr(twist_debugger, "TIED_FROM", target.lm.vocab_size)
    options = {"trace": None, "seed": 0, "budget": lambda: 10**6, "prompts": []}
    run = twist_debugger.DebugRun(target, best, None, **options)
    for size in (4, 32):
        run.step()
        assert run.report.trace.num_particles == size
    monkeypatch.setattr(twist_debugger, "TIED_FROM", target.lm.vocab_size + 1)
    run = twist_debugger.DebugRun(target, best, None, **options)
    run.step()
    assert run.report.trace.num_particles == 32
