"""What the reviews are about: products, their parts, and what can be good or bad about each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Product:
    """A product; `topics` pairs something good with something bad to say of the same thing."""

    name: str
    weight: float
    purposes: str
    parts: str
    use: str
    topics: tuple[tuple[str, str], ...]
    machine: bool = False
    plural: bool = False


_LOOKS = ("it/they looks/look [great|beautiful|nice]", "it/they looks/look [cheap|ugly|old]")

PRODUCTS = (
    Product(
        "toaster",
        9.0,
        "for [my kitchen|my mom]",
        "[lever|door|cord]",
        "make breakfast",
        (
            ("it makes [perfect|golden] bread", "it burns [the bread|everything]"),
            ("it heats up fast", "it is [so|too] slow"),
            ("my kitchen smells great", "my kitchen smells like smoke"),
            _LOOKS,
        ),
        machine=True,
    ),
    Product(
        "phone",
        8.0,
        "for [my son|my mom]",
        "[screen|button|camera]",
        "call my family",
        (
            ("the screen is [bright|clear]", "the screen is [dark|too small]"),
            (
                "the battery lasts [all day|two days]",
                "the battery dies [after an hour|every day]",
            ),
            ("it is [very|so] fast", "it is [so|very] slow"),
            ("the camera is [great|very good]", "the pictures are [dark|blurry]"),
        ),
        machine=True,
    ),
    Product(
        "lamp",
        4.0,
        "for my [desk|room]",
        "[switch|cord]",
        "read at night",
        (
            ("the light is [warm|soft|bright]", "the light is [too weak|cold]"),
            ("it is easy to clean", "it gets too hot"),
            ("the color is [perfect|beautiful]", "the color is wrong"),
            _LOOKS,
        ),
        machine=True,
    ),
    Product(
        "camera",
        3.0,
        "for [my trip|my daughter]",
        "[lens|screen|button]",
        "take pictures",
        (
            ("it takes [great|sharp|beautiful] pictures", "it takes [blurry|dark] pictures"),
            ("the battery lasts all day", "the battery dies after an hour"),
            ("it is [light|small] and easy to carry", "it is too big for my bag"),
            ("it is easy to use", "nobody knows how to use it"),
        ),
        machine=True,
    ),
    Product(
        "chair",
        3.0,
        "for my [desk|room]",
        "[seat|back|leg]",
        "sit at my desk",
        (
            ("my back feels [great|better]", "my back hurts [every day|]"),
            ("the seat is [soft|very comfortable]", "the seat is [too hard|hard]"),
            ("it is [light|strong]", "it is [weak|loud]"),
            _LOOKS,
        ),
    ),
    Product(
        "book",
        4.0,
        "for [my trip|my daughter]",
        "[cover|first page|last page]",
        "read at night",
        (
            ("the story is [funny|beautiful|clever]", "the story is [slow|boring|stupid^0.4]"),
            ("I could not stop reading", "I stopped reading after ten pages"),
            ("the ending made me [smile|cry]", "the ending made no sense"),
            ("the pictures are beautiful", "the pictures are [dark|ugly]"),
        ),
    ),
    Product(
        "jacket",
        3.0,
        "for [the winter|my wife]",
        "[zipper|pocket|button]",
        "walk in the snow",
        (
            ("it is [so|very] [warm|soft]", "it is not warm at all"),
            ("it fits [perfectly|well]", "it is too [small|big]"),
            ("it keeps me dry", "I was wet [in the rain|after an hour]"),
            ("the color is [perfect|beautiful]", "the color is [wrong|ugly]"),
        ),
    ),
    Product(
        "watch",
        2.5,
        "for [my husband|work]",
        "[strap|button|screen]",
        "be on time",
        (
            ("it is always on time", "it is always [late|wrong]"),
            ("the battery lasts a year", "the battery died after [two days|a week]"),
            ("it is easy to read", "I can not read it at night"),
            _LOOKS,
        ),
        machine=True,
    ),
    Product(
        "umbrella",
        1.5,
        "for [my trip|work]",
        "[handle|button]",
        "walk in the rain",
        (
            ("it keeps me dry", "it does not keep me dry"),
            ("it opens fast", "it does not open"),
            ("it is [light|strong]", "the wind broke it [the next day|]"),
            _LOOKS,
        ),
    ),
    Product(
        "tent",
        1.5,
        "for [my trip|our family]",
        "[door|zipper|floor]",
        "sleep in the forest",
        (
            ("it keeps us dry", "everything inside was wet"),
            ("it is big and light", "it is too small for us"),
            ("it is [strong|easy to carry]", "the wind broke it"),
        ),
    ),
    Product(
        "game",
        2.0,
        "for [my son|our family]",
        "[board|box]",
        "play with my family",
        (
            ("it is [so much|a lot of] fun", "it is [boring|not fun at all]"),
            ("the children play it every day", "nobody wants to play it"),
            ("it is [clever|funny]", "it makes no sense"),
            ("it is easy to learn", "it is too hard for the children"),
        ),
    ),
    Product(
        "headphones",
        4.0,
        "for [work|my trip]",
        "[cord|battery|button]",
        "listen to music",
        (
            ("the sound is [clear|great]", "the sound is [weak|bad]"),
            ("they are [light|soft|comfortable]", "they hurt my head"),
            ("the battery lasts all day", "the battery dies after an hour"),
            _LOOKS,
        ),
        machine=True,
        plural=True,
    ),
    Product(
        "shoes",
        4.0,
        "for [work|the winter]",
        "[left|right] one",
        "walk to work",
        (
            ("they are [so|very] [soft|light|comfortable]", "they hurt my feet"),
            ("they fit [perfectly|well]", "they are too [small|big]"),
            ("they keep my feet warm", "my feet are always [wet|cold]"),
            _LOOKS,
        ),
        plural=True,
    ),
    Product(
        "gloves",
        2.0,
        "for [the winter|my husband]",
        "[left|right] one",
        "work in the snow",
        (
            ("they keep my hands warm", "my hands are always [wet|cold]"),
            ("they fit [perfectly|well]", "they are too [small|big]"),
            ("they are [so|very] soft", "they smell [bad|like smoke]"),
        ),
        plural=True,
    ),
)
