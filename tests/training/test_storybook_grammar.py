"""The storybook's grammar: varied, coherent over sentences, and seeded."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from functools import cache

import pytest

from training.storybook.engine import Dice, Page, join, lines
from training.storybook.grammar import Text, corpus, hostile_logit, write

PARTS = ("lm", "stars", "hostility")


@cache
def texts() -> tuple[Text, ...]:
    return tuple(corpus(77, 5000))


def sentences(text: Text) -> list[str]:
    return re.split(r"(?<=[.!?])”? ", str(text))


def test_grammar_is_seeded_and_addressed():
    again = list(corpus(77, 40))
    assert again == list(texts()[:40])
    assert again[10:] == list(corpus(77, 30, start=10))
    assert {str(t) for t in corpus(78, 40)}.isdisjoint(str(t) for t in again)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="one of story, review; got 'poem'"):
        write("poem", 0, 0)


def test_texts_are_varied():
    found = {sentence for text in texts() for sentence in sentences(text)}
    assert len(found) > 8000
    assert len({str(text) for text in texts()}) > 4990
    assert Counter(t.stars for t in texts()).keys() == {None, 1, 2, 3, 4, 5}


def test_lengths():
    lengths = sorted(len(text.words) for text in texts())
    assert lengths[0] >= 8
    assert lengths[-1] <= 160
    assert 30 <= lengths[len(lengths) // 2] <= 110


@pytest.mark.parametrize(
    "wrong",
    [
        r"\b[Aa] [aeiou]\w+",
        r"\b[Aa]n (?!hour)[^aeiou\W]\w*",
        r"\b(She|He|It|she|he|it) (were|have|are|do|want|love|like)\b",
        r"\b([Tt]hey|I|[Ww]e|[Yy]ou) (was not|has|is|does|wants|loves|likes)\b",
        r"\bthis (headphones|shoes|gloves)\b",
        r"\b(a|an|another) (\w+ )?(headphones|shoes|gloves)\b",
        r"\bI bought these (?!\w+s\b|\w+ (headphones|shoes|gloves))",
        r"[.!?]”? [a-z]\w+ (?!said|asked|yelled|shouted|cried|called)\w+ \w+ \w+ \w+ \w+[.]$",
        r" [.,!?]|\s\s|“ | ”|[{}\[\]|*^/]",
        r"\b(\w+) \1\b",
    ],
)
def test_no_text_is_ungrammatical(wrong: str):
    for text in texts():
        assert not (match := re.search(wrong, str(text))), f"{match[0]!r} in {text}"


def test_every_sentence_begins_with_a_capital():
    for text in texts():
        for sentence in re.split(r"[.!?] ", str(text)):
            assert sentence.lstrip("“")[0].isupper() or sentence.startswith(("and", "but")), text


def test_a_hero_keeps_one_gender():
    for text in texts():
        if match := re.search(r"named (Lily|Mia|Zoe|Tom|Max|Ben)\. (She|He|It)\b", str(text)):
            assert match[2] == ("She" if match[1] in {"Lily", "Mia", "Zoe"} else "He")


def test_quotes_are_paired():
    for text in texts():
        opened = 0
        for word in text.words:
            opened += (word == "“") - (word == "”")
            assert opened in (0, 1), text
        assert opened == 0, text


def test_hostility_is_graded_and_depends_on_context():
    assert all(level >= 0.0 for text in texts() for level in text.hostility())
    final = [text.hostility()[-1] for text in texts() if text.kind == "story"]
    for low, high, least in (
        (0.0, 0.1, 0.4),
        (0.1, 2.0, 0.1),
        (2.0, 4.0, 0.02),
        (4.0, 99.0, 0.005),
    ):
        assert sum(low <= level < high for level in final) / len(final) > least
    harmless = [t for t in texts() if re.search(r"hit the \w+ with a stick", str(t))]
    assert len(harmless) > 20
    for text in harmless:
        at = text.words.index("hit")
        assert text.words[at + 1] != "the" or text.heats[at] == 0.0


def test_sorry_takes_hostility_away():
    assert any(heat < 0.0 for text in texts() for heat in text.heats)
    for text in texts():
        for at, heat in enumerate(text.heats):
            if text.words[at - 1 : at + 1] == ("said", "sorry"):
                assert heat == -1.0 or text.words[at - 2] in ("never", "must")


def test_hostile_logit_is_increasing():
    logits = [hostile_logit(level / 10) for level in range(120)]
    assert all(a < b for a, b in itertools.pairwise(logits))
    assert hostile_logit(2.5) == 0.0
    assert hostile_logit(0.0) < -6.0


def test_engine_chooses_by_weight_and_counts_surprise():
    counts: Counter[str] = Counter()
    for i in range(4000):
        page = Page(Dice(f"{i}"))
        page.write("[3* yes|no] .")
        counts[page.words[0]] += 1
        assert math.isclose(page.dice.nats, -math.log(0.75 if page.words[0] == "Yes" else 0.25))
    assert abs(counts["Yes"] - 3000) / math.sqrt(4000 * 0.75 * 0.25) < 4.5


def test_engine_agreement_articles_and_heat():
    page = Page(Dice("0"), plural=True)
    page.values["who"] = "a old [dog|dog]"
    page.write("{who} is/are a^0.5 [angry]^0.25 , “ go ! ” they/it said .")
    assert join(page.words) == "An old dog are an angry, “Go!” it said."
    assert page.heats[4:6] == [0.5, 0.25]


@pytest.mark.parametrize("template", ["[a|b", "a|b]", "a] b", "{thing}^0.2"])
def test_engine_refuses_broken_templates(template: str):
    with pytest.raises(ValueError, match=r"Unbalanced|stand alone"):
        lines(template)
