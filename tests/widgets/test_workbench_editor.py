"""The workbench's controls: what each makes of phi, of the problem and of the twist."""

import html
import pickle

import pytest
import torch
from widgets.conftest import settle

import tsmc_widgets as tw
from tsmc_widgets.experiments.code import code_of
from tsmc_widgets.targets import functions
from tsmc_widgets.targets.description import describe_problem, formula_of, parse_potential
from tsmc_widgets.targets.protocol import term_of
from tsmc_widgets.widgets.factor_editor import KINDS, PotentialEditor, kind_of
from tsmc_widgets.widgets.workbench import Workbench
from tsmc_widgets.widgets.workbench_rail import ProblemPanel, SamplerPanel

STARS, HOSTILITY = "storybook/stars", "storybook/hostility"

CONTROLS = [
    # kind, control, value, the factor that results, what it adds to log phi
    ("contains a word", "words", "old king, castle",
     {"kind": "ContainsWord", "args": ["old king", "castle"]},
     "log 1[“old king” or “castle” in s]"),
    ("avoids words", "words", "broke", {"kind": "AvoidsWord", "args": ["broke"]},
     "log 1[no “broke” in s]"),
    ("matches a regular expression", "pattern", "a+", {"kind": "MatchesRegex", "pattern": "a+"},
     "log 1[/a+/ in s]"),
    ("rating in stars", "label", "2 stars",
     {"kind": "ClassProbability", "model": STARS, "label": "2 stars", "beta": 4},
     "4 log p(2 stars | s)"),
    ("rating in stars", "beta", 1.0,
     {"kind": "ClassProbability", "model": STARS, "label": "5 stars"}, "log p(5 stars | s)"),
    ("rating in stars", "beta", 2.5,
     {"kind": "ClassProbability", "model": STARS, "label": "5 stars", "beta": 2.5},
     "2.5 log p(5 stars | s)"),
    ("hostility", "mode", "calm",
     {"kind": "ClassProbability", "model": HOSTILITY, "label": "not hostile"},
     "log p(not hostile | s)"),
    ("hostility", "mode", "tempered",
     {"kind": "TemperedReward", "reward": HOSTILITY, "beta": 1}, "hostility(s)"),
    ("hostility", "mode", "at_least",
     {"kind": "RewardThreshold", "reward": HOSTILITY, "at_least": 0}, "log 1[hostility(s) ≥ 0]"),
    ("hostility", "mode", "at_most",
     {"kind": "RewardThreshold", "reward": HOSTILITY, "at_most": 0}, "log 1[hostility(s) ≤ 0]"),
    ("leads to a text (infilling)", "observed", " the end",
     {"kind": "Continuation", "observed": " the end"}, "log p₀(“ the end” | s)"),
    ("length before EOS", "range", (2, 64), {"kind": "Length", "at_least": 2},
     "log 1[tokens of s ≥ 2]"),
    ("length before EOS", "range", (2, 9), {"kind": "Length", "at_least": 2, "at_most": 9},
     "log 1[2 ≤ tokens of s ≤ 9]"),
    ("contains tokens", "tokens", "storm + storm, calm",
     {"kind": "ContainsToken", "args": [["storm", "storm"], "calm"]},
     "log 1[token “storm” then “storm” or “calm” in s]"),
    ("a class of another classifier", "label", "3",
     {"kind": "ClassProbability", "model": "name or folder", "label": 3},
     "log p(name or folder 3 | s)"),
    ("the class that was observed", "observed", "1 star",
     {"kind": "ClassConditional", "model": STARS, "observed": "1 star"}, "log p(1 star | s)"),
    ("sentiment (VADER)", "beta", 7.5,
     {"kind": "TemperedReward", "reward": "vader/positive", "beta": 7.5, "reward_max": 1.0},
     "7.5 positive(s)"),
    ("sentiment (VADER)", "reward", "vader/negative",
     {"kind": "TemperedReward", "reward": "vader/negative", "beta": 5, "reward_max": 1.0},
     "5 negative(s)"),
    ("sentiment (VADER)", "kind", "RewardThreshold",
     {"kind": "RewardThreshold", "reward": "vader/positive", "at_least": 0},
     "log 1[positive(s) ≥ 0]"),
    ("the potential of a named problem", "beta", 2.0,
     {"kind": "OfProblem", "problem": "rainy-week", "beta": 2}, "2 (−2 |days of rain − 2|)"),
    ("anything, as JSON", "json", '{"kind": "Constant", "value": 2}',
     {"kind": "Constant", "value": 2}, "2"),
    ("is JSON of a schema", "schema", '{"title": "sum", "type": "integer"}',
     {"kind": "JSONSchema", "schema": {"title": "sum", "type": "integer"}},
     "log 1[s is JSON of “sum”]"),
    ("follows a grammar", "grammar", 'start: A\nA: "a"',
     {"kind": "Grammar", "grammar": 'start: A\nA: "a"'}, 'log 1[s ∈ L(start: A A: "a")]'),
    ("is a full match", "pattern", "a+b", {"kind": "FullMatch", "pattern": "a+b"},
     "log 1[s = /a+b/]"),
]  # fmt: skip


@pytest.fixture
def told():
    return []


@pytest.fixture
def editor(told):
    return PotentialEditor([], lambda: told.append(1))


class TestPotential:
    @pytest.mark.parametrize(("title", "control", "value", "part", "term"), CONTROLS)
    def test_each_control_makes_its_factor(self, editor, told, title, control, value, part, term):
        editor.menu.value = title
        assert editor.menu.value == ""
        row = editor.rows[0]
        assert row.kind.title == title
        row.fields[control].value = value
        assert editor.parts == [part]
        assert row.error == ""
        assert term_of(part) == term
        assert len(told) == 2

    def test_every_kind_of_the_menu_starts_as_itself(self, editor):
        for kind in KINDS:
            row = editor.add(kind.start)
            assert row.kind is kind
            assert row.part == kind.start
        assert len(editor.parts) == len(KINDS)

    def test_factors_are_added_and_removed_in_their_order(self, editor, told):
        titles = ["contains a word", "hostility", "avoids words"]
        for title in titles:
            editor.menu.value = title
        editor.rows[1].remove.click()
        assert [row.kind.title for row in editor.rows] == [titles[0], titles[2]]
        assert len(told) == 4
        for row in list(editor.rows):
            editor.remove(row)
        assert editor.parts == [{"kind": "Constant"}]
        assert parse_potential(editor.parts).describe() == "1"

    def test_options_without_a_control_stay(self):
        part = {"kind": "AvoidsWord", "args": ["a"], "scope": "full", "case": "match"}
        editor = PotentialEditor([part], lambda: None)
        editor.rows[0].fields["words"].value = "b"
        assert editor.parts == [{**part, "args": ["b"]}]

    def test_sliders_make_room(self):
        part = {"kind": "ClassProbability", "model": STARS, "label": "1 star", "beta": 100}
        assert PotentialEditor([part], lambda: None).rows[0].fields["beta"].value == 100

    def test_controls_that_do_nothing_are_away(self, editor):
        fields = editor.add({"kind": "ClassProbability", "model": HOSTILITY, "label": 1}).fields
        assert (fields["beta"].layout.display, fields["eta"].layout.display) == (None, "none")
        fields["mode"].value = "at_least"
        assert (fields["beta"].layout.display, fields["eta"].layout.display) == ("none", None)

    @pytest.mark.parametrize("name", [n for n in tw.PROBLEMS if "unhappy" in n or "sad" in n])
    def test_sentiment_has_sliders(self, name):
        parts = describe_problem(name)["potential"]
        editor = PotentialEditor(parts, lambda: None)
        fields = editor.rows[0].fields
        tempered = parts[0]["kind"] == "TemperedReward"
        assert editor.rows[0].kind.title == "sentiment (VADER)"
        assert (fields["beta"].layout.display, fields["eta"].layout.display) == (
            (None, "none") if tempered else ("none", None)
        )
        fields["reward"].value = "vader/positive"
        fields["reward"].value = "vader/negative"
        assert editor.parts == parts
        fields["beta" if tempered else "eta"].value = 0.5
        assert editor.parts != parts
        narrow = {**parts[0], "scope": "continuation"}
        editor = PotentialEditor([narrow], lambda: None)
        editor.rows[0].fields["reward"].value = "vader/positive"
        assert editor.parts == [{**narrow, "reward": "vader/positive"}]
        other = {**parts[0], "at_most": 0.5}
        assert PotentialEditor([other], lambda: None).rows[0].kind is KINDS[-1]

    def test_what_is_wrong_is_said_in_the_factor(self, editor):
        row = editor.add(KINDS[-1].start)
        row.fields["json"].value = "{"
        assert "must be a JSON object" in editor.error
        assert row.part == KINDS[-1].start
        row.fields["json"].value = "[]"
        assert 'an object with a "kind"' in row.note.value.replace("&quot;", '"')
        row.fields["json"].value = '{"kind": "Constant"}'
        assert editor.error == ""
        editor.menu.value = "is JSON of a schema"
        editor.rows[1].fields["schema"].value = '{"type": '
        assert "A schema must be JSON: Expecting value: line 1 column 10" in editor.error

    def test_showing_a_function_calls_and_imports_nothing(self):
        part = {"kind": "TextFunction", "function": "no_such_module_of_mine:f"}
        assert PotentialEditor([part], lambda: None).parts == [part]

    def test_unknown_descriptions_are_shown_as_json(self):
        part = {"kind": "CountToken", "args": ["a"], "at_least": 2}
        assert kind_of(part) is KINDS[-1]
        assert term_of(part) == "log 1[count of “a” ≥ 2]"

    def test_formula_of_named_problems(self):
        assert formula_of("five-star-review-beta-8") == "log φ(s) = 8 log p(5 stars | s)"
        assert "OfProblem" not in formula_of("paper/toxicity")
        for name in tw.PROBLEMS:
            assert formula_of(name).startswith("log φ(s) = ")


class TestProblem:
    @pytest.mark.parametrize("name", list(tw.PROBLEMS))
    def test_every_named_problem_can_be_chosen(self, name, told):
        panel = ProblemPanel("eos" if name != "eos" else "rainy-week", lambda: told.append(1))
        panel.fields["problem"].value = name
        expected = describe_problem(name) if tw.PROBLEMS[name].conditional else name
        assert panel.problem == expected
        assert told == [1]

    def test_settings_without_a_control_are_kept(self):
        kept = {"stop": ["yes"], "power": 2}
        panel = ProblemPanel({**describe_problem("eos"), "name": "m", **kept}, lambda: None)
        assert {name: panel.described[name] for name in kept} == kept
        panel.fields["eos"].value = "ignore"
        assert "stop" not in panel.described
        panel.set("rainy-week")
        assert "power" not in panel.described

    def test_an_edited_chat_stays_a_chat(self):
        panel = ProblemPanel("sad-answer", lambda: None)
        assert panel.fields["prompt"].value == "Write the first line of a sad story."
        panel.fields["prompt"].value = "Say <b>hello</b>."
        assert panel.problem["prompt"] == [{"role": "user", "content": "Say <b>hello</b>."}]
        panel.set("rainy-week")
        assert panel.fields["prompt"].value == "sun"

    def test_an_edit_makes_it_ones_own_and_back(self, told):
        panel = ProblemPanel("one-star-review", lambda: told.append(1))
        panel.fields["num_steps"].value = 11
        assert panel.problem["name"] == "one-star-review, changed"
        assert panel.fields["problem"].value == ""
        assert "Changed from one-star-review" in panel.note.value
        panel.fields["num_steps"].value = 10
        assert panel.problem == "one-star-review"
        assert panel.fields["problem"].value == "one-star-review"
        assert len(told) == 2

    def test_another_observation_is_the_same_problem(self):
        panel = ProblemPanel("star-review-conditional", lambda: None)
        panel.editor.rows[0].fields["observed"].value = "2 stars"
        assert panel.problem["name"] == "star-review-conditional"
        panel.fields["num_steps"].value = 11
        assert panel.problem["name"] == "star-review-conditional, changed"


class TestSampler:
    def sampler(self, problem, **how):
        described = describe_problem(problem)
        name = problem if not tw.PROBLEMS[problem].conditional else described
        return SamplerPanel(tw.RunSpec(problem=name, **how), described, lambda: None), described

    def values_of(self, panel):
        return [value for _, value in panel.fields["twist"].options]

    def test_the_nearest_twist_stands_first(self):
        panel, _ = self.sampler("one-star-review")
        ships = [v for v in self.values_of(panel) if v.startswith("ship:")]
        assert ships[0] == "ship:one-star-review"
        assert ships[1] == "ship:five-star-review"
        assert "ship:infilling-2-1" not in ships
        panel, _ = self.sampler("rainy-week")
        assert self.values_of(panel) == ["none", "look-ahead", "optimal", "saved"]

    def test_conditional_twists_need_their_observation(self):
        panel, _ = self.sampler("infilling-2-1")
        ships = [v for v in self.values_of(panel) if v.startswith("ship:")]
        assert ships[0] == "ship:infilling-2-1"
        assert "ship:infilling-15-10" not in ships
        assert "ship:star-review-conditional" not in ships

    def test_what_does_nothing_is_away_or_disabled(self):
        panel, _ = self.sampler("rainy-week")
        fields = panel.fields
        assert fields["proposal"].disabled
        assert fields["twist_power"].layout.display == "none"
        assert fields["folder"].layout.display == "none"
        fields["twist"].value = "look-ahead"
        assert not fields["proposal"].disabled
        fields["rule"].value = "never"
        assert fields["ess_threshold"].layout.display == "none"
        panel.show_what_matters(only_proposes=True)
        assert fields["rule"].disabled
        assert "nothing is resampled" in panel.note.value
        fields["twist"].value = "saved"
        with pytest.raises(ValueError, match="Give the folder"):
            panel.values("rainy-week")


@pytest.fixture
def trained(opened, tmp_path):
    """A workbench beside a training of a toy."""
    session = opened(tw.TrainSession, "rainy-week", batch_size=10, num_updates=2)
    return session, opened(Workbench, "rainy-week", train=session, folder=tmp_path / "twists")


def test_a_twist_that_was_just_trained(trained):
    session, workbench = trained
    twist = workbench.sampler.fields["twist"]
    assert ("just trained: nothing yet", "trained") in twist.options
    twist.value = "trained"
    assert "press Start there first" in workbench.refusal.value
    twist.value = "none"
    assert workbench.refusal.value == ""
    assert session.train(2, timeout=120)
    workbench.sampler.fit(workbench.problem.described)
    assert ("just trained: ctl, 2 updates", "trained") in twist.options
    twist.value = "trained"
    assert workbench.wait(30)
    assert workbench.view.status["error"] == ""
    assert workbench.spec.method == "saved"
    folder = workbench.spec.twist
    assert "ctl-2-updates-" in folder
    assert workbench.sampler.fields["folder"].value == folder
    own, kept = session.twist, workbench.session.config.twist
    tokens = torch.tensor([[0, 0, 1, 2, 2, 0]])
    assert torch.equal(own.log_psi(tokens, 1), kept.log_psi(tokens, 1))
    namespace = {}
    exec(code_of(workbench.spec), namespace)
    assert namespace["trace"].log_z == workbench.trace.log_z
    # Training goes on; what was taken stays, and is taken once.
    twist.value = "trained"
    assert workbench.wait(30)
    assert workbench.spec.twist == folder
    assert session.train(4, timeout=120)
    twist.value = "trained"
    assert workbench.wait(30)
    assert "ctl-4-updates-" in workbench.spec.twist
    assert len(list(workbench.folder.iterdir())) == 2


def test_factors_that_contradict_each_other_are_named_before_the_run(opened):
    page = opened(Workbench, "rainy-week", num_particles=4)
    page.problem.editor.set([{"kind": "ContainsWord", "args": ["rain"]}])
    page.problem.editor.add({"kind": "AvoidsWord", "args": ["rain"]})
    settle(page)
    said = page.view.status["error"]
    assert '“contains "rain"” and “avoids "rain"” contradict each other' in said


def test_new_factors_start_with_what_there_is(opened, monkeypatch):
    monkeypatch.setattr(functions, "_REGISTERED", {})
    page = opened(Workbench, "rainy-week", num_particles=4)
    editor = page.problem.editor
    editor.menu.value = "contains a word"
    symbols = page.target.lm.symbols
    assert editor.parts[-1]["args"][0] in symbols
    editor.menu.value = "a Python function"
    assert "run tw.register_function" in editor.rows[-1].note.value
    editor.remove(editor.rows[-1])
    functions.register_function(len, name="length")
    editor.menu.value = "a Python function"
    assert editor.parts[-1]["function"] == "length"
    settle(page)
    assert page.view.status["error"] == ""


TWO_WORDS = "import re\n\ndef log_phi(text):\n    return -2.0 * len(re.findall('sun', text))\n"


@pytest.fixture
def typed(opened, monkeypatch):
    """A page made by a cell of a notebook, with the row of a Python function."""
    monkeypatch.setattr(functions, "_REGISTERED", {})
    monkeypatch.setattr("tsmc_widgets.widgets.workbench.made_by_a_cell", lambda: True)
    page = opened(Workbench, "rainy-week", num_particles=8)
    page.problem.editor.set([])
    page.problem.editor.menu.value = "a Python function"
    page.wait(60)
    return page, page.problem.editor.rows[0]


def test_a_typed_function_is_tried_taken_and_copied_as_code(typed, page_threads):
    page, row = typed
    row.code.area.value = TWO_WORDS
    texts = page._some_texts()
    assert len(texts) == 3
    for text in texts:
        assert f"<td>{-2.0 * text.count('sun'):.2f}</td><td>{text}</td>" in row.code.preview.value
    row.code.button.click()
    assert page.wait(60)
    assert page.view.status["error"] == ""
    name = functions.TypedFunction(TWO_WORDS).name
    assert page.spec.problem["potential"] == [{"kind": "TextFunction", "function": name}]
    expected = [-2.0 * f"sun{text}".count("sun") for text in page.trace.texts()]
    assert page.trace.columns.log_psi[0, -1].tolist() == expected
    namespace, code = {}, page.code
    del functions._REGISTERED[name]
    exec(code, namespace)
    assert namespace["trace"].log_z == page.trace.log_z
    functions.register_function(functions.TypedFunction(TWO_WORDS), name=name)
    # Another text is another function: nothing known of the one before is taken for it.
    row.code.area.value = TWO_WORDS.replace("-2.0", "-3.0")
    row.code.button.click()
    assert page.wait(60)
    assert page.spec.problem["potential"][0]["function"] != name
    page.show(page.spec)
    assert page.problem.editor.rows[0].code.area.value == row.code.area.value


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def log_phi(text):\n    return (\n", "Line 2: '(' was never closed."),
        ("def log_phi(text):\n    n = 0\n    return 1 / n\n", "Line 3: ZeroDivisionError"),
        ("import nothing_of_this_name\n", "Line 1: ModuleNotFoundError"),
        ("x = 1\n", "Define a function log_phi(text)"),
        ("def log_phi(text):\n    return 'a'\n", "log_phi must return a number"),
        ("def log_phi(text):\n    return None\n", "log_phi must return a number"),
        ("def log_phi(text):\n    return float('nan')\n", "it gave nan"),
        ("def log_phi(text):\n    raise SystemExit\n", "Line 2: SystemExit"),
    ],
)
def test_errors_of_typed_code_stand_on_the_page_with_their_line(typed, source, said):
    page, row = typed
    before = page.spec
    row.code.area.value = source
    assert said in html.unescape(row.code.error.value)
    assert row.code.button.disabled
    row.code._press()
    assert page.spec == before
    row.code.area.value = TWO_WORDS
    assert row.code.error.value == ""


def test_a_page_that_opens_on_a_function_has_its_editor(typed, opened):
    page, row = typed
    row.code.area.value = TWO_WORDS
    row.code.button.click()
    assert page.wait(60)
    again = opened(Workbench, page.spec)
    assert again.problem.editor.rows[0].code.area.value == TWO_WORDS
    assert "<td>sun</td>" in again.problem.editor.rows[0].code.preview.value


def test_typed_functions_go_to_workers_as_their_source():
    function = functions.TypedFunction(TWO_WORDS)
    again = pickle.loads(pickle.dumps(function))
    assert (again.source, again("sun sun")) == (TWO_WORDS, -4.0)
