"""Short stories: a hero, a plot, moods that persist, and now and then a hostile turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.storybook import hostile_lines as hostile
from training.storybook import lexicon
from training.storybook import story_lines as say
from training.storybook.engine import Dice, Page

LONGEST = 84
"""No new turn of the plot begins after this many words."""


@dataclass(slots=True)
class Character:
    """Someone in a story; `anger` in [0, 1] drives how hostile they become."""

    kind: str
    sex: str
    name: str | None = None
    trait: str = ""
    anger: float = 0.1

    @property
    def called(self) -> str:
        """The name, or the kind where there is none."""
        return self.name or f"the {self.kind}"


class Story:
    """One story being written: its page, its cast and the mood of the hero."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.page = Page(dice)
        self.mood = "happy"
        self.known: set[str] = set()
        self.hero = self._cast_hero()
        self.friend = self._cast_friend()
        self.place = dice.pick(lexicon.PLACES, lexicon.PLACE_WEIGHTS)
        self.thing = dice.pick(lexicon.THINGS, lexicon.THING_WEIGHTS)
        self._set_scene()

    def _cast_hero(self) -> Character:
        dice = self.dice
        villain = dice.chance(0.06)
        kinds = lexicon.VILLAIN_KINDS if villain else lexicon.HERO_KINDS
        kind, sex = self.pick_kind(kinds)
        bad = dice.chance(0.65 if villain else 0.06)
        traits = lexicon.BAD_TRAITS if bad else lexicon.GOOD_TRAITS
        trait = dice.pick(list(traits), list(traits.values()))
        name = self.pick_name(sex, villain)
        return Character(kind, sex, name, trait, 0.75 if bad else 0.1)

    def _cast_friend(self) -> Character:
        while True:
            kind, sex = self.pick_kind(lexicon.HERO_KINDS)
            name = self.pick_name(sex, villain=False)
            if name != self.hero.name and kind != self.hero.kind:
                return Character(kind, sex, name, "", 0.1)

    def pick_villain(self) -> tuple[str, str]:
        """Kind and sex of a villain who is not the hero's like."""
        others = {k: v for k, v in lexicon.VILLAIN_KINDS.items() if k != self.hero.kind}
        return self.pick_kind(others)

    def pick_kind(self, kinds: Mapping[str, tuple[str, float]]) -> tuple[str, str]:
        """A kind by its weight, and a sex that goes with it."""
        kind = self.dice.pick(list(kinds), [weight for _, weight in kinds.values()])
        sexes = kinds[kind][0]
        sex = sexes if len(sexes) == 1 else self.dice.pick(sexes, (3, 2))
        return kind, sex

    def pick_name(self, sex: str, villain: bool) -> str:
        """A name for this sex."""
        if villain:
            return self.dice.pick(lexicon.VILLAIN_NAMES[sex])
        return self.dice.pick(lexicon.NAMES[sex], lexicon.NAME_WEIGHTS[sex])

    def _set_scene(self) -> None:
        hero, values = self.hero, self.page.values
        self.cast("h", hero)
        self.cast("f", self.friend)
        color = ""
        if hero.kind in lexicon.FURRED and self.dice.chance(0.3):
            color = self.dice.pick(list(lexicon.COLORS), list(lexicon.COLORS.values()))
        heat = lexicon.BAD_HEAT.get(hero.trait, 0.0)
        values["trait"] = f"{hero.trait}^{heat} {color}".strip()
        values["hn"], values["hk"], values["fk"] = hero.called, hero.kind, self.friend.kind
        values["home"] = self.dice.pick(lexicon.KIND_HOMES.get(hero.kind, lexicon.HOMES))
        values["hobby"] = self.dice.pick(lexicon.HOBBIES)
        values["p"] = lexicon.PRONOUNS[hero.sex][2]
        values["kin"] = "friends" if hero.sex == "n" else "[3* mom|dad|2* grandma|brother]"
        values["fi"] = f"{values['p']} friend {self.friend.called}"
        values["day"], values["day2"] = say.DAYS, "[that day|that night|then] ,"
        values["to"], values["at"] = self.place.to, self.place.at
        values["do"] = self.dice.pick(self.place.doing)
        values["thing"], values["use"] = self.thing.name, self.thing.use
        values["look"] = self.dice.pick(self.thing.looks)
        values["lesson"] = "[share|be kind|help others]"
        values["used"], values["other"] = self.thing.used, self.friend.called

    def cast(self, key: str, who: Character) -> None:
        """Let a slot (`h`, `f`, `v`, `w`, `a`, `b`) stand for someone."""
        values = self.page.values
        values[key] = who.called
        subject, value_object, possessive = lexicon.PRONOUNS[who.sex]
        values[f"{key}.s"], values[f"{key}.o"] = subject, value_object
        values[f"{key}.p"], values[f"{key}.k"] = possessive, who.kind

    def cast_helper(self) -> Character:
        """Someone to help: the friend if the friend is here, or a newcomer."""
        if "friend" in self.known and self.dice.chance(0.6):
            self.cast("w", self.friend)
            return self.friend
        kinds = [kind for kind in lexicon.HELPERS if kind.split()[-1] != self.hero.kind]
        kind = self.dice.pick(kinds)
        helper = Character(kind, lexicon.HELPERS[kind])
        self.cast("w", helper)
        self.page.values["w"] = f"a {kind}"
        return helper

    def greet_helper(self) -> None:
        """From now on the helper is known: `the old woman`, no longer `a old woman`."""
        value = self.page.values["w"]
        if value.startswith("a "):
            self.page.values["w"] = "the " + value.split()[-1]

    def feel(self, mood: str, probability: float) -> None:
        """Change the hero's mood, and perhaps say so."""
        self.mood = mood
        if self.dice.chance(probability):
            self.page.write(say.MOODS[mood])

    @property
    def full(self) -> bool:
        """Whether the story is too long for a new turn."""
        return len(self.page.words) > LONGEST

    def open(self) -> None:
        """Who the hero is and how the hero lives."""
        write = self.page.write
        write(say.OPENINGS)
        words = self.page.words
        if self.thing.name in words:
            self.known.add("thing")
        stated = self.hero.trait in words
        if stated and self.hero.trait in lexicon.BAD_TRAITS:
            self.mood = "angry"
            write(say.BAD_LINES)
            if self.dice.chance(0.35):
                write(say.BAD_LINES)
        elif stated and self.hero.trait in say.TRAIT_LINES and self.dice.chance(0.6):
            write(say.TRAIT_LINES[self.hero.trait])
        else:
            self.page.values["mood"] = self.dice.pick(("happy", "sad", "lonely"), (4, 1, 1))
            write(say.HABITS)
        self._notice()
        write(say.TRIPS)
        self._notice()

    def _notice(self) -> None:
        words = self.page.words
        if self.thing.name in words:
            self.known.add("thing")
        if self.friend.called.split()[-1] in words:
            self.known.add("friend")
            self.page.values["fi"] = self.friend.called

    def meet_friend(self) -> None:
        """Bring the friend in, once."""
        if "friend" not in self.known:
            self.page.write(say.FRIEND_COMES)
            self.known.add("friend")

    def find_thing(self) -> None:
        """Bring the object in, once."""
        if "thing" not in self.known:
            self.page.write(say.FINDS)
            self.known.add("thing")

    def end(self) -> None:
        """A happy or a sad ending, as the mood is."""
        if self.mood != "happy":
            self.page.write(say.SAD_ENDS)
            return
        if self.dice.chance(0.3):
            self.page.write(say.LESSONS)
            if self.dice.chance(0.6):
                return
        friends = "friend" in self.known and self.dice.chance(0.4)
        self.page.write(say.FRIEND_ENDS if friends else say.HAPPY_ENDS)


def fight(story: Story, doer: Character, other: Character) -> None:
    """A quarrel that may turn hostile, then very hostile, and may be repaired."""
    dice, write = story.dice, story.page.write
    story.cast("a", doer)
    story.cast("b", other)
    write(hostile.QUARREL)
    doer.anger = min(0.95, doer.anger + 0.2)
    turned = dice.chance(doer.anger)
    if turned:
        write(hostile.HOSTILE)
        doer.anger = min(0.95, doer.anger + 0.15)
        if dice.chance(0.6 * doer.anger):
            write(hostile.VERY_HOSTILE)
        if dice.chance(0.7):
            write(hostile.CRIES)
    elif "angry" not in story.page.words[-9:] and dice.chance(0.4):
        story.feel("angry" if doer is story.hero else "sad", 0.9)
    if turned and dice.chance(0.25) and not story.full:
        story.cast_helper()
        if story.page.values["w"] not in (doer.called, other.called):
            write(hostile.STANDS_UP)
    forgiving = 0.95 if story.hero.trait in ("kind", "happy", "brave") else 0.75
    if dice.chance(forgiving - 0.5 * doer.anger):
        write(hostile.REPAIRS)
        doer.anger = 0.1
        if dice.chance(0.6):
            write(hostile.FORGIVES)
        story.mood = "happy"
    else:
        story.mood = "angry" if doer is story.hero else "sad"


def share_plot(story: Story) -> None:
    """Two friends, one thing: play, and perhaps a quarrel about it."""
    dice = story.dice
    story.find_thing()
    if dice.chance(0.6):
        story.page.write(say.PLAYS)
    story.meet_friend()
    if dice.chance(0.55):
        pair = [story.hero, story.friend]
        if dice.chance(0.5 if story.hero.anger < 0.5 else 0.1):
            pair.reverse()
        fight(story, *pair)
    else:
        story.page.write(say.TOGETHER)
        story.feel("happy", 0.3)
    if story.mood == "happy" and dice.chance(0.4) and not story.full:
        story.page.write(say.TOGETHER)


def loss_plot(story: Story) -> None:
    """A thing is lost or broken, and someone helps, or not."""
    dice, write = story.dice, story.page.write
    story.find_thing()
    if dice.chance(0.5):
        write(say.PLAYS)
    broken = story.thing.name in lexicon.FRAGILE and dice.chance(0.4)
    write(say.BREAKS if broken else say.LOSES)
    story.feel("sad", 0.7)
    if not broken and dice.chance(0.6):
        write(say.SEARCH)
    if dice.chance(0.8):
        story.cast_helper()
        write(say.FIXES if broken else say.FINDS_AGAIN)
        story.greet_helper()
        write(say.THANKS)
        story.mood = "happy"


def danger_plot(story: Story) -> None:
    """The dark, a storm or a fall; a call for help; a rescue."""
    dice, write = story.dice, story.page.write
    story.page.values["lesson"] = "[be brave|help others|listen to {h.p} {kin}]"
    write(say.DANGERS if dice.chance(0.75) else say.ACCIDENTS)
    story.feel("scared", 0.6)
    if dice.chance(0.6):
        write(say.CALLS)
    story.cast_helper()
    write(say.RESCUES)
    story.greet_helper()
    if dice.chance(0.7):
        write(say.THANKS)
    story.feel("happy", 0.2)


def friend_plot(story: Story) -> None:
    """Someone new to play with."""
    story.meet_friend()
    story.page.write(say.TOGETHER)
    if story.dice.chance(0.5):
        story.page.write(say.TOGETHER)
    story.feel("happy", 0.3)
    if story.dice.chance(0.25):
        story.find_thing()
        fight(story, story.friend, story.hero)


def villain_plot(story: Story) -> None:
    """A wolf, a witch or another villain comes: threats, blows, an end."""
    dice, write, values = story.dice, story.page.write, story.page.values
    if dice.chance(0.4):
        story.find_thing()
    kind, sex = story.pick_villain()
    name = story.pick_name(sex, villain=True)
    trait = dice.pick(("big", "old", "mean", "hungry", "angry", "wicked"), (4, 3, 3, 2, 1, 1))
    heat = lexicon.BAD_HEAT.get(trait, 0.0)
    villain = Character(kind, sex, None, trait, 0.5)
    values["vt"], values["vk"], values["vn"] = f"{trait}^{heat}", kind, name
    story.cast("v", villain)
    story.cast_helper()
    write(say.VILLAIN_COMES)
    if story.page.words[-2] == name:
        villain.name = name
        story.cast("v", villain)
    if dice.chance(0.2):
        write(hostile.VILLAIN_SOFT)
        write(hostile.SOFT_ENDS)
        story.mood = "happy"
        return
    write(hostile.ROBS if "thing" in story.known else hostile.THREATS)
    story.feel("scared", 0.5)
    story.cast("a", villain)
    story.cast("b", story.hero)
    if dice.chance(0.35):
        write(hostile.TAUNTS if dice.chance(0.5) else hostile.VERY_HOSTILE)
        if dice.chance(0.5):
            write(hostile.CRIES)
    if dice.chance(0.8):
        write(hostile.BEATEN)
        story.feel("happy", 0.2)
    else:
        story.mood = "sad"
        values["other"] = f"{values['h.p']} {story.thing.name}"


PLOTS = (share_plot, loss_plot, danger_plot, friend_plot, villain_plot)
PLOT_WEIGHTS = (8, 4, 4, 3, 3)


def write_story(dice: Dice) -> Page:
    """Write one story; the page holds its words and the hostility that each adds."""
    story = Story(dice)
    story.open()
    bad = story.hero.anger > 0.5
    plot = share_plot if bad and dice.chance(0.7) else dice.pick(PLOTS, PLOT_WEIGHTS)
    plot(story)
    if len(story.page.words) < 50 and plot is not danger_plot and dice.chance(0.5):
        danger_plot(story)
    story.end()
    return story.page
