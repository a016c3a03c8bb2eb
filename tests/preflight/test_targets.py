"""Names of accelerators."""

import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.preflight.targets import CHIPS, Target, parse_target


def test_a_target_is_a_name_and_a_number_of_devices():
    assert parse_target("a100-80gb:4") == Target("a100-80gb", 4)
    assert parse_target("v5e:8").chip.platform == "tpu"
    assert str(parse_target("h100:16")) == "h100:16"


@pytest.mark.parametrize("text", ["a100-80gb", "a100-80gb:", "a100-80gb:0", "a100-80gb:many", "h100:-1", "h100:4:4"])
def test_a_number_that_cannot_be_is_refused_with_what_was_expected(text):
    with pytest.raises(UserError, match="expected (a100-80gb|h100):COUNT"):
        parse_target(text)


def test_chips_come_in_the_arrangements_that_are_rented():
    with pytest.raises(UserError, match="v5e:COUNT with 1, 4, 8, 16"):
        parse_target("v5e:6")
    with pytest.raises(UserError, match="v4:COUNT with 4, 8, 16"):
        parse_target("v4:1")


def test_an_unknown_name_is_answered_with_one_that_is_near():
    with pytest.raises(UserError, match="did you mean a100-80gb"):
        parse_target("a100-80:4")
    with pytest.raises(UserError, match="expected one of a100-40gb, "):
        parse_target("cray:1")


def test_every_chip_has_what_its_platform_needs():
    assert {chip.platform for chip in CHIPS.values()} == {"cuda", "tpu"}
    for chip in CHIPS.values():
        assert bool(chip.arrangements) == (chip.platform == "tpu")
        assert bool(chip.description) == (chip.platform == "cuda")
        assert chip.usable_bytes <= chip.memory_bytes


@pytest.mark.parametrize("name", [name for name in CHIPS if CHIPS[name].arrangements])
def test_an_arrangement_has_as_many_places_as_chips(name):
    for count, arrangement in CHIPS[name].arrangements.items():
        sides = [int(side) for side in arrangement.split("x")]
        product = 1
        for side in sides:
            product *= side
        assert product == count
