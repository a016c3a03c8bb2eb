"""Exact captions of portraits in varied natural wording."""

import itertools
from collections.abc import Sequence

import numpy as np

from hgdpo_jax.toon.portraits import Portrait, portrait

_FRAMING = {
    "close-up": ("a close-up portrait of", "a close-up of"),
    "portrait": ("a portrait of", "a picture of"),
    "distant": ("a distant portrait of", "a small portrait of"),
    "left": ("at left, a portrait of", "on the left, a picture of"),
    "right": ("at right, a portrait of", "on the right, a picture of"),
}
# Other words for classes, wherever a caption names one.
_SYNONYMS = {
    "blond": ("blond", "blonde"),
    "grey": ("grey", "gray"),
    "surprised": ("surprised", "astonished"),
    "sad": ("sad", "unhappy"),
    "angry": ("angry", "furious"),
}
_PERSON = ("person", "toon person", "character", "toon character")
_MOUTH_NOUN = {
    "smiling": ("a smile", "a smiling mouth"),
    "laughing": ("a laugh", "a laughing mouth"),
    "surprised": ("a surprised look", "an astonished face"),
    "sad": ("a sad look", "an unhappy face"),
    "angry": ("an angry look", "a furious face"),
}
_HAIR = {
    "short": ("short {} hair", "{} hair cut short"),
    "spiky": ("spiky {} hair", "{} spiky hair"),
    "bun": ("{} hair in a bun", "a {} hair bun"),
    "long": ("long {} hair", "{} long hair"),
    "bob": ("a {} bob", "{} hair in a bob"),
}
_BEARD = {
    "moustache": ("a moustache", "a mustache"),
    "beard": ("a beard", "a full beard"),
    "long beard": ("a long beard", "a bushy long beard"),
}
_EYES = {"closed": ("closed eyes", "eyes closed"), "winking": ("a wink", "one eye closed")}
_CLOTHES = ("{} shirt", "{} top", "{} t-shirt")

# A caption's pattern is its variant modulo their number. {features} are skin, hair, and beard and eyes if any;
# {details} add the mouth to these, which other patterns name with {look}.
PATTERNS = (
    "{framing} {a_look} {person} with {features}, wearing {a_clothes}, {background} background",
    "{framing} {a_look} {person} with {features} in {a_clothes} on a {background} background",
    "{framing} a {person} with {details}, {clothes}, {background} background",
    "{framing} {a_look} {person}, {features}, {clothes}, {background} background",
    "{framing} a {person} in {a_clothes} with {details}, on {background}",
    "{framing} {a_look} {person} in {a_clothes} against a {background} wall, {features}",
    "{framing} a {person} on a {background} background, {details}, {clothes}",
    "on a {background} background, {framing} {a_look} {person} with {features}, wearing {a_clothes}",
    "{framing} {a_look} {person} wearing {a_clothes}, with {features}, before a {background} wall",
    "{details}: {framing} a {person} in {a_clothes}, {background} background",
    "{framing} a {person}, {look}, with {features}, dressed in {a_clothes}, {background} behind",
    "{framing} a {person} who looks {look}, with {features}, {a_clothes} and a {background} background",
    "{clothes}, {background} background, {framing} {a_look} {person} with {features}",
    "{framing} {a_look} {person}, wearing {a_clothes}, {features}, {background} backdrop",
)


def caption(person: Portrait, variant: int | None = None) -> str:
    """Returns an exact caption, in the portrait's own wording or in another variant of it (an int >= 0)."""
    variant = person.caption_variant if variant is None else variant
    random = np.random.default_rng(variant)

    def pick(options: tuple[str, ...]) -> str:
        return options[random.integers(len(options))]

    def word(name: str) -> str:
        return pick(_SYNONYMS.get(name, (name,)))

    hair_color = word(person.hair_color)
    background = word(person.background)
    features = [f"{person.skin} skin", pick(_HAIR[person.hair_style]).format(hair_color)]
    features += [pick(_BEARD[person.beard])] if person.beard in _BEARD else []
    features += [pick(_EYES[person.eyes])] if person.eyes in _EYES else []
    random.shuffle(features)
    look = word(person.mouth)
    clothes = pick(_CLOTHES).format(person.clothes_color)
    return PATTERNS[variant % len(PATTERNS)].format(
        framing=pick(_FRAMING[person.framing]),
        person=pick(_PERSON),
        look=look,
        a_look=_with_article(look),
        features=_join(features),
        details=_join([*features, pick(_MOUTH_NOUN[person.mouth])]),
        clothes=clothes,
        a_clothes=_with_article(clothes),
        background=background,
    )


def wordings(people: Sequence[Portrait], count: int) -> list[str]:
    """Returns `count` times the captions of all n people, each time in other wordings: the first n are their own."""
    return [caption(person, person.caption_variant + k) for k in range(count) for person in people]


def _join(phrases: list[str]) -> str:
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def prompts(split: str, count: int) -> list[str]:
    """Returns the first `count` distinct captions of a split, each in its portrait's own wording."""
    distinct: dict[str, None] = {}
    for index in itertools.count():
        if len(distinct) >= count:
            break
        distinct[caption(portrait(index, split))] = None
    return list(distinct)
