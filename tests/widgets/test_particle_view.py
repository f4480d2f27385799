"""The view's traits, without a browser or a kernel."""

from tsmc_widgets.widgets.particle_view import SOURCES, ParticleView, script


def test_hello_is_answered():
    view = ParticleView()
    view.hello = 41
    assert view.welcome == 41


def test_update_replaces_header_and_data_together(make_trace):
    view = ParticleView.from_trace(make_trace(K=4, T=6, done=2))
    seen = []
    view.observe(lambda _: seen.append(view.header["num_bytes"]), "data")
    view.update(make_trace(K=4, T=6, done=3), run_id=7)
    assert seen == [len(view.data)]
    assert (view.header["steps_done"], view.header["run_id"]) == (3, 7)


def test_script_is_one_module_without_imports():
    source = script()
    assert source.count("export default") == 1
    assert "import " not in "\n".join(
        line for line in source.splitlines() if not line.lstrip().startswith(("*", "/"))
    )
    assert SOURCES[-1] == "main"


def test_script_never_parses_text_as_html():
    source = script()
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert dangerous not in source
