from pathlib import Path

import numpy as np
import pytest

from hgdpo_jax.base_config import typed
from hgdpo_jax.config_files import load_config
from hgdpo_jax.config_limits import require_limits
from hgdpo_jax.errors import UserError
from hgdpo_jax.toon import damage
from hgdpo_jax.toon.damage import FAMILIES, damaged
from hgdpo_jax.toon.portraits import portrait, render

SCORER_DAMAGE, JUDGE_DAMAGE = FAMILIES.values()


def test_the_two_families_share_no_fault():
    assert not set(SCORER_DAMAGE) & set(JUDGE_DAMAGE)
    assert len(SCORER_DAMAGE) >= 7 and len(JUDGE_DAMAGE) >= 7


@pytest.mark.parametrize("fault", SCORER_DAMAGE + JUDGE_DAMAGE)
def test_every_fault_visibly_changes_every_picture(fault):
    for index in range(12):
        person = portrait(index, "train")
        picture = damaged(person, (fault,), seed=index)
        assert picture.shape == (64, 48, 3) and picture.dtype == np.uint8
        assert np.abs(picture.astype(float) - render(person)).mean() > 0.5


@pytest.mark.parametrize("family", [SCORER_DAMAGE, JUDGE_DAMAGE])
def test_damage_is_a_function_of_portrait_and_seed(family):
    person = portrait(1, "validation")
    pictures = [damaged(person, family, seed).tobytes() for seed in range(10)]
    assert pictures == [damaged(person, family, seed).tobytes() for seed in range(10)]
    assert len(set(pictures)) == 10


def test_severity_ranges_from_subtle_to_strong():
    person = portrait(2, "train")
    changes = [
        np.abs(damaged(person, (damage.blur,), seed).astype(float) - render(person)).mean() for seed in range(20)
    ]
    assert max(changes) > 1.5 * min(changes)


def test_damaging_many_equals_damaging_one_by_one():
    people = [portrait(index, "train") for index in range(3)]
    expected = [damaged(person, SCORER_DAMAGE, seed) for person, seed in zip(people, (4, 5, 6), strict=True)]
    np.testing.assert_array_equal(damage.damaged_many(people, SCORER_DAMAGE, (4, 5, 6)), expected)


def test_an_unknown_family_is_refused_with_the_families_there_are():
    config = load_config(str(Path(__file__).parents[2] / "configs/toon_scorer.py"))
    config.scorer_training.damage = "RUST"
    known = " or ".join(map(repr, FAMILIES))
    with pytest.raises(UserError, match=f"scorer_training.damage is 'RUST', expected {known}"):
        require_limits(typed(config))
