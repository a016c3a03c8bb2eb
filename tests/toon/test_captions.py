import re

import pytest

from hgdpo_jax.toon import portraits
from hgdpo_jax.toon.captions import PATTERNS, caption, prompts
from hgdpo_jax.toon.portraits import portrait

_MOUTH = {
    "smiling": "smil(e|ing)",
    "laughing": "laugh",
    "surprised": "surprised|astonished",
    "sad": r"\bsad|unhappy",
    "angry": "angry|furious",
}
_HAIR = {"short": "short", "spiky": "spiky", "bun": "bun", "long": r"long \w+ hair|long hair", "bob": r"\bbob\b"}
_BEARD = {"none": None, "moustache": "moustache|mustache", "beard": r"\b(full|a) beard", "long beard": "long beard"}
_EYES = {"open": None, "closed": "closed eyes|eyes closed", "winking": "wink|one eye closed"}


def _color(name):
    return {"grey": "gr[ea]y", "blond": "blonde?"}.get(name, name)


def _cases(table, value):
    return [(pattern, name == value) for name, pattern in table.items() if pattern]


@pytest.mark.parametrize("split", portraits.SPLITS)
def test_every_caption_names_the_attributes_and_no_others(split):
    for index in range(300):
        person = portrait(index, split)
        text = caption(person)
        assert f"{person.skin} skin" in text
        assert re.search(rf"{person.clothes_color} (shirt|top|t-shirt)", text)
        color = _color(person.background)
        assert re.search(rf"{color} (background|wall|backdrop|behind)|on {color}$", text)
        assert re.search(rf"{_color(person.hair_color)} (\w+ )?(hair|bob)", text)
        for pattern, expected in [
            *_cases(_MOUTH, person.mouth),
            *_cases(_HAIR, person.hair_style),
            *_cases(_BEARD, person.beard),
            *_cases(_EYES, person.eyes),
        ]:
            assert bool(re.search(pattern, text)) == expected, (pattern, text)


def test_captions_are_deterministic():
    assert caption(portrait(5, "train")) == caption(portrait(5, "train"))
    assert caption(portrait(5, "train"), variant=3) == caption(portrait(5, "train"), variant=3)


def test_one_portrait_has_many_wordings():
    assert len({caption(portrait(5, "train"), variant) for variant in range(100)}) > 90


def test_captions_have_at_least_a_dozen_sentence_patterns():
    assert len(PATTERNS) >= 12
    starts = {caption(portrait(5, "train"), variant)[:12] for variant in range(len(PATTERNS))}
    assert len(starts) > 4


def test_articles_agree_with_what_follows():
    texts = prompts("train", 500)
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
    assert any("an orange" in text for text in texts)


def test_prompts_are_distinct_and_start_with_the_first_portraits():
    texts = prompts("test", 200)
    assert len(set(texts)) == len(texts) == 200
    assert texts[0] == caption(portrait(0, "test"))
    assert prompts("test", 0) == []


def test_splits_share_no_prompt():
    assert not set(prompts("train", 1000)) & set(prompts("test", 300))
