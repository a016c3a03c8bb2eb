"""What people give to public functions: one or several prompts, seeds, images or latents."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import require_whole_characters

# JAX takes seeds modulo 2^32, so that larger ones would repeat images.
_SEEDS = 1 << 32


def texts_of(texts: str | Iterable[str], name: str = "prompts") -> list[str]:
    """The texts as a list, of one where a single text is given; raises UserError where one is no text."""
    given = [texts] if isinstance(texts, str) else _several(texts, name)
    for place, text in enumerate(given):
        if not isinstance(text, str):
            raise UserError(f"{name}[{place}] is {text!r}, expected a text")
        require_whole_characters(text, f"{name}[{place}]")
    return given


def seeds_of(seeds: int | Iterable[int]) -> list[int]:
    """The seeds as a list, of one where a single number is given; raises UserError where one is out of range."""
    # np.ndim takes an array's scalar for a number too, which isinstance would not; the type checker cannot follow it.
    given = _several([seeds] if np.ndim(seeds) == 0 else seeds, "seeds")  # type: ignore[arg-type]
    for place, seed in enumerate(given):
        try:
            given[place] = operator.index(seed)
        except TypeError as error:
            raise UserError(f"seeds[{place}] is {seed!r}, expected a whole number") from error
        if not 0 <= given[place] < _SEEDS:
            raise UserError(f"seeds[{place}] is {seed}, expected 0 to {_SEEDS - 1}")
    return given


def images_of(images: Any) -> UInt8[np.ndarray, "n height width 3"]:
    """The images as an array, of one where a single image is given; raises UserError where they are no pixels."""
    array = _rows(images, "images")
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise UserError(f"images are {_described(array)}, expected uint8[n, height, width, 3]")
    return array


def latents_of(latents: Any, channels: int, name: str = "latents") -> Float[np.ndarray, "n h w c"]:
    """The latents as an array, of one row where those of one image are given; raises UserError for another shape."""
    array = _rows(latents, name)
    if array.ndim != 4 or array.shape[-1] != channels:
        raise UserError(f"{name} are {_described(array)}, expected [n, height, width, {channels}]")
    return array


def of_one_length(**given: Any) -> list[Any]:
    """Lists, arrays and dicts of arrays of equal length, those of one row repeated.

    Raises UserError where lengths differ otherwise.
    """
    counts = {name: _count(rows) for name, rows in given.items()}
    count = max(counts.values())
    if any(rows not in (1, count) for rows in counts.values()):
        listed = ", ".join(f"{rows} {name.replace('_', ' ')}" for name, rows in counts.items())
        raise UserError(f"{listed} are given, expected as many of each, or one for all")
    return [rows if counts[name] == count else _repeated(rows, count) for name, rows in given.items()]


def _count(rows: Any) -> int:
    return _count(next(iter(rows.values()))) if isinstance(rows, Mapping) else len(rows)


def _repeated(rows: Any, count: int) -> Any:
    if isinstance(rows, Mapping):
        return {name: _repeated(values, count) for name, values in rows.items()}
    return rows * count if isinstance(rows, list) else np.repeat(rows, count, axis=0)


def _several(values: Iterable[Any], name: str) -> list[Any]:
    try:
        given = list(values)
    except TypeError as error:
        raise UserError(f"{name} is {values!r}, expected one or several") from error
    if not given:
        raise UserError(f"no {name} are given, expected at least one")
    return given


def _rows(values: Any, name: str) -> Any:
    try:
        array = values if hasattr(values, "ndim") else np.asarray(values)
    # Of pictures of different sizes.
    except ValueError as error:
        raise UserError(f"{name} are of several shapes, expected one: give them in several calls") from error
    array = array[None] if array.ndim == 3 else array
    if not len(array):
        raise UserError(f"no {name} are given, expected at least one")
    return array


def _described(array: Any) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
