"""A bar that shows how training goes, and is gone when it ends."""

import math

import pytest
import tqdm.auto
from learning.cases import make_case


@pytest.fixture
def bars(monkeypatch):
    made, true = [], tqdm.auto.tqdm

    class Bar(true):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.said, self.closed = [], False
            made.append(self)

        def set_postfix(self, words, refresh=True):
            self.said.append(dict(words))
            super().set_postfix(words, refresh=refresh)

        def close(self):
            self.closed = True
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return made


def test_it_is_off_unless_asked_for(bars, capsys):
    list(make_case("ctl").updates(2))
    assert bars == []
    assert capsys.readouterr().err == ""


def test_updates_without_a_signal_say_so(bars):
    trainer = make_case("rare")
    updates = list(trainer.updates(4, progress=True))
    said = [words["loss"] for words in bars[0].said]
    assert any(update.skipped for update in updates)
    assert [word == "no signal" for word in said] == [update.skipped for update in updates]


def test_it_closes_on_leaving_and_on_an_interrupt(bars, monkeypatch):
    trainer = make_case("ctl")
    loop = trainer.updates(5, progress=True)
    assert math.isfinite(next(loop).ess)
    loop.close()
    assert bars[0].closed

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(trainer.updates(5, progress=True))
    assert bars[1].closed
    assert trainer.done == 1
