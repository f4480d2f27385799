"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from tsmc_widgets.files import page_path, write_atomically


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with write_atomically(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    path = tmp_path / "folder"
    for name in ("first", "second"):
        with write_atomically(path) as part:
            part.mkdir()
            (part / name).write_text(name)
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_an_interrupt_leaves_what_was_there(tmp_path, folder):
    path = tmp_path / "a"
    path.write_text("old")
    write = write_atomically(path)
    part = write.__enter__()
    (part / "inside").mkdir(parents=True) if folder else part.write_text("half")
    error = KeyboardInterrupt()
    assert not write.__exit__(KeyboardInterrupt, error, None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"), write_atomically(tmp_path / "folder") as part:
        part.write_text("file")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inside"]


@pytest.mark.parametrize("name", ["", " ", ".", "../x", "a/../../x", "/x", "link/x"])
def test_a_page_stays_in_the_notebooks_folder(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="inside the notebook's folder only"):
        page_path(name)


def test_a_page_writes_over_nothing_but_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").write_text("page: 1")
    (tmp_path / "notes").write_text("notes")
    (tmp_path / "folder").mkdir()
    assert str(page_path("own", begins="page:")) == "own"
    assert str(page_path("sub/new", begins="page:")) == str(Path("sub/new"))
    for other in ("notes", "folder"):
        with pytest.raises(FileExistsError, match="give another name"):
            page_path(other, begins="page:")
        page_path(other)
