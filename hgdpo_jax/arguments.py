"""Arguments of public functions: one or several prompts, seeds, images or latents."""

import operator
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import require_whole_characters

# JAX takes seeds modulo 2^32, so that larger ones would repeat images.
_SEEDS = 1 << 32


def texts_of(texts: str | Iterable[str], name: str = "prompts") -> list[str]:
    """One or several texts as a list; raises UserError where one is not a text."""
    given = [texts] if isinstance(texts, str) else _several(texts, name)
    for place, text in enumerate(given):
        if not isinstance(text, str):
            raise UserError(f"{name}[{place}] is {text!r}, expected a text")
        require_whole_characters(text, f"{name}[{place}]")
    return given


def seeds_of(seeds: int | Iterable[int]) -> list[int]:
    """One or several seeds as a list; raises UserError where one is not a whole number within 32 bits."""
    # np.ndim is 0 for NumPy's and JAX's scalars too, which isinstance would miss; the type checker cannot follow it.
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
    """One or several images as an array; raises UserError where they are not uint8 pixels."""
    array = _rows(images, "images")
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise UserError(f"images are {_described(array)}, expected uint8[n, height, width, 3]")
    return array


def images_and_prompts_of(images: Any, prompts: str | Iterable[str]) -> list[Any]:
    """Images and their prompts in equal numbers, as `images_of`, `texts_of` and `of_one_length` give them."""
    return of_one_length(images=images_of(images), prompts=texts_of(prompts))


def latents_of(latents: Any, channels: int, name: str = "latents") -> Float[np.ndarray, "n h w c"]:
    """The latents of one or several images as an array; raises UserError for another shape."""
    array = _rows(latents, name)
    if array.ndim != 4 or array.shape[-1] != channels:
        raise UserError(f"{name} are {_described(array)}, expected [n, height, width, {channels}]")
    return array


def of_one_length(**given: Any) -> list[Any]:
    """Lists, arrays and trees of arrays of equal length; those of one row are repeated.

    Raises UserError where lengths differ otherwise.
    """
    counts = {name: _count(rows) for name, rows in given.items()}
    count = max(counts.values())
    if any(rows not in (1, count) for rows in counts.values()):
        listed = ", ".join(f"{rows} {name.replace('_', ' ')}" for name, rows in counts.items())
        raise UserError(f"{listed} are given, expected as many of each, or one for all")
    return [rows if counts[name] == count else _repeated(rows, count) for name, rows in given.items()]


def _count(rows: Any) -> int:
    return len(rows) if isinstance(rows, list) else len(jax.tree.leaves(rows)[0])


def _repeated(rows: Any, count: int) -> Any:
    return rows * count if isinstance(rows, list) else jax.tree.map(lambda leaf: np.repeat(leaf, count, axis=0), rows)


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
    # Images of different sizes.
    except ValueError as error:
        raise UserError(f"{name} are of several shapes, expected one: give them in several calls") from error
    array = array[None] if array.ndim == 3 else array
    if not len(array):
        raise UserError(f"no {name} are given, expected at least one")
    return array


def _described(array: Any) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
