"""Who and what the stories are about: kinds, names, traits, places and things."""

from __future__ import annotations

from dataclasses import dataclass

PRONOUNS = {
    "f": ("she", "her", "her"),
    "m": ("he", "him", "his"),
    "n": ("it", "it", "its"),
}
"""Subject, object and possessive of each gender."""

NAMES = {
    "f": ("Lily", "Mia", "Anna", "Zoe", "Ella", "Rose"),
    "m": ("Tom", "Max", "Ben", "Sam", "Leo", "Jack"),
    "n": ("Pip", "Dot", "Beep"),
}
NAME_WEIGHTS = {"f": (12, 5, 3, 2, 1, 1), "m": (12, 6, 3, 2, 1, 1), "n": (3, 2, 2)}
VILLAIN_NAMES = {"f": ("Hilda", "Vera"), "m": ("Rex", "Grim", "Gus"), "n": ("Rex", "Grim")}

HERO_KINDS = {
    "girl": ("f", 16),
    "boy": ("m", 14),
    "cat": ("fm", 6),
    "dog": ("mf", 6),
    "rabbit": ("mf", 4),
    "mouse": ("fm", 3),
    "bear": ("mf", 3),
    "fox": ("mf", 2),
    "frog": ("mf", 2),
    "bird": ("fm", 2),
    "robot": ("n", 2),
    "prince": ("m", 2),
    "princess": ("f", 3),
    "knight": ("m", 1.5),
    "farmer": ("mf", 1.5),
}
"""Gender (or genders, the first one likelier) and weight of each kind of hero."""

PEOPLE = frozenset({"girl", "boy", "prince", "princess", "knight", "farmer", "man", "woman"})

VILLAIN_KINDS = {
    "wolf": ("m", 5),
    "witch": ("f", 4),
    "giant": ("m", 3),
    "troll": ("m", 2),
    "dragon": ("mf", 2),
    "pirate": ("m", 2),
}

HELPERS = {
    "old woman": "f",
    "old man": "m",
    "kind farmer": "m",
    "big dog": "m",
    "friendly duck": "f",
    "brave knight": "m",
    "little bird": "n",
}

GOOD_TRAITS = {
    "little": 26,
    "brave": 4,
    "kind": 4,
    "happy": 4,
    "young": 3,
    "shy": 2,
    "lonely": 3,
    "clever": 2,
    "lazy": 1,
    "curious": 1,
    "hungry": 1,
    "proud": 1,
    "poor": 0.6,
}
BAD_TRAITS = {"mean": 5, "angry": 3, "cruel": 1.5, "wicked": 1}
BAD_HEAT = {"mean": 0.7, "angry": 0.4, "cruel": 1.2, "wicked": 0.9}

COLORS = {"brown": 3, "white": 3, "black": 2, "gray": 2}
FURRED = frozenset({"cat", "dog", "rabbit", "mouse", "bird", "bear"})

HOMES = (
    "in a small house [near the forest|by the river|]",
    "in a [little|big] village",
    "on a farm",
)
KIND_HOMES = {
    "prince": ("in a [big|golden] castle",),
    "princess": ("in a [big|golden] castle",),
    "knight": ("in an old castle",),
    "bear": ("in a [warm|dark] cave", "in the forest"),
    "fox": ("in the forest",),
    "rabbit": ("in the forest", "under a big tree"),
    "mouse": ("under a big tree", "in a [small|little] house"),
    "frog": ("[near|by] the lake",),
    "bird": ("in a [big|tall|old] tree",),
    "wolf": ("in the [dark|] forest",),
    "witch": ("in the [dark|] forest", "in a dark castle"),
    "giant": ("on a [big|tall|] hill", "in a dark castle"),
    "troll": ("under the bridge", "in a dark cave"),
    "dragon": ("in a dark cave", "on a tall hill"),
    "pirate": ("on a [big|black] boat",),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a story goes: the way there, being there, and what one does there."""

    to: str
    at: str
    doing: tuple[str, ...]


PLACES = (
    Place("to the park", "in the park", ("play", "run", "climb the trees")),
    Place("to the forest", "in the forest", ("walk", "look for flowers", "climb the trees")),
    Place("to the beach", "at the beach", ("swim", "play in the sand", "look for stones")),
    Place("to the river", "by the river", ("swim", "catch fish", "play in the water")),
    Place("to the lake", "by the lake", ("swim", "catch fish", "rest in the sun")),
    Place("to the garden", "in the garden", ("play", "look for flowers", "eat apples")),
    Place("to the market", "at the market", ("buy bread", "buy apples", "look at the toys")),
    Place("up the hill", "on the hill", ("run", "rest in the sun", "look at the clouds")),
    Place("to school", "at school", ("read", "play", "sing songs")),
)
PLACE_WEIGHTS = (6, 5, 3, 3, 2, 4, 2, 2, 2)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something to love, lose, share or break: its looks and what one does with it."""

    name: str
    looks: tuple[str, ...]
    use: str
    used: str


THINGS = (
    Thing("ball", ("red", "blue", "new"), "play with", "[kicked|threw]"),
    Thing("kite", ("red", "yellow", "blue"), "fly", "flew"),
    Thing("doll", ("pretty", "new", "old"), "play with", "played with"),
    Thing("boat", ("small", "blue", "little"), "play with", "played with"),
    Thing("drum", ("big", "red", "new"), "play", "played"),
    Thing("book", ("big", "old", "new"), "read", "read"),
    Thing("hat", ("red", "pretty", "warm"), "wear", "wore"),
    Thing("stone", ("shiny", "golden", "blue"), "look at", "looked at"),
    Thing("cake", ("big", "sweet", "warm"), "eat", "looked at"),
    Thing("crown", ("golden", "shiny", "pretty"), "wear", "wore"),
)
THING_WEIGHTS = (8, 5, 4, 4, 2, 4, 3, 3, 3, 1)
FRAGILE = frozenset({"kite", "doll", "boat", "drum", "hat", "crown"})

HOBBIES = (
    "play [in the sun|in the garden|with {p} friends|all day]",
    "sing [songs|all day|in the morning|]",
    "dance [in the rain|all day|]",
    "read [big|old|] books",
    "run and jump",
    "swim in the lake",
    "climb [tall|] trees",
    "help [people|{p} {kin}|{p} friends]",
    "look at the [stars|clouds]",
    "eat [sweet|warm] [cakes|apples]",
)
