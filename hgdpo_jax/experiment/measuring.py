"""Measuring the images of a model: scores, measures, colours and embeddings, kept part by part for a run to resume."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8

from hgdpo_jax import hosts, leases
from hgdpo_jax.batching import finite_rows
from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool, making, prompt_count
from hgdpo_jax.data.unusable import image_of
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import HSVMeans, hsv_of_images, means_of
from hgdpo_jax.evaluation.diversity import diversity
from hgdpo_jax.evaluation.measures import Measure

# With a blank, which no name of a score or measure has.
_COLORS, _EMBEDDINGS = "HSV means", "image embeddings"
ImagesOfPrompts = UInt8[np.ndarray, "prompts height width 3"]


class ImageSource(Protocol):
    """Images of a model, the same number of each prompt; what is measured of them goes into `folder`."""

    name: str
    folder: epath.Path

    def complete(self, blocks: Sequence[Block], seeds: int) -> None:
        """Makes what is missing, a share on each host."""

    def images(self, block: Block, index: int) -> tuple[ImagesOfPrompts, Bool[np.ndarray, " prompts"]]:
        """One image of each prompt of a block, and which of them are usable: NaN is measured of the others.

        Raises DamagedPartError where it has to be made again.
        """


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a model's images; `examples` are the first images of the first prompts.

    Values of scores and measures are NaN where an image is unusable; colours and diversity leave it out.
    """

    values: Mapping[str, Float[np.ndarray, "prompts seeds"]]
    colors: HSVMeans
    diversity: float | None
    examples: UInt8[np.ndarray, "n height width 3"]


@dataclasses.dataclass(frozen=True)
class _Column:
    """A value that is kept per image: `function` of images and prompts, in `parts`."""

    parts: Parts
    function: Callable[[ImagesOfPrompts, Sequence[str]], np.ndarray]


def measure(
    source: ImageSource,
    blocks: Sequence[Block],
    seeds: int,
    measures: Mapping[str, Measure],
    examples: int,
    unusable_limit: float,
) -> Measured | None:
    """Measures what is not measured yet, a share on each host, and reads the whole; None on hosts but the first.

    Raises UserError where more than the share `unusable_limit` of the images are unusable.
    """
    columns = _columns(source.folder, measures)

    def missing() -> dict[str, dict[tuple[Block, int], None]]:
        found = {name: dict.fromkeys(each.parts.missing_for_all(blocks, seeds)) for name, each in columns.items()}
        return {name: parts for name, parts in found.items() if parts}

    def read() -> Measured | None:
        # Damaged parts are made again in the next round.
        with contextlib.suppress(DamagedPartError):
            values = {
                name: np.concatenate([each.parts.read_block(block, seeds) for block in blocks])
                for name, each in columns.items()
            }
            for name, found in values.items():
                if not np.isfinite(found).any():
                    raise UserError(
                        f"none of the {len(found) * seeds:,} images of {source.name} is usable, their {name} are not "
                        "finite: check its weights, or give --config.dtype=float32"
                    )
            colors = np.concatenate(values[_COLORS])
            shown: list[np.ndarray] = []
            for block in blocks:
                if len(shown) < examples:
                    shown += list(source.images(block, 0)[0][: examples - len(shown)])
            return Measured(
                values={name: np.where(np.isfinite(values[name]), values[name], np.nan) for name in measures},
                colors=means_of(colors[finite_rows(colors)]),
                diversity=diversity(values[_EMBEDDINGS]) if _EMBEDDINGS in values else None,
                examples=np.stack(shown),
            )
        return None

    while True:
        source.complete(blocks, seeds)
        if missing():
            # One lease for everything that is measured: each image is decoded once for all of it.
            with leases.held(columns[_COLORS].parts.folder, wait=True):
                wanted = missing()
                todo = dict.fromkeys(part for parts in wanted.values() for part in parts)
                images = seeds * prompt_count(blocks) // hosts.count()
                _measure(source, columns, wanted, hosts.own(list(todo)), images, unusable_limit)
            continue

        measured = hosts.by_first(read)
        if hosts.from_first(measured is not None):
            return measured


def _columns(folder: epath.Path, measures: Mapping[str, Measure]) -> dict[str, _Column]:
    columns = {
        name: _Column(Pool(folder).scores(measure.fingerprint), measure.function) for name, measure in measures.items()
    }
    columns[_COLORS] = _Column(Parts(folder / "colors", "colors", np.float32), lambda images, _: hsv_of_images(images))
    if embedder := diversity_score(measures):
        embed: Any = embedder.embed
        parts = Parts(folder / f"embeddings-{embedder.fingerprint}", "embeddings", np.float32)
        columns[_EMBEDDINGS] = _Column(parts, lambda images, _: embed(images))
    return columns


def diversity_score(measures: Mapping[str, Measure]) -> Measure | None:
    """The score whose image embeddings tell how different images are: CLIP's, else the last that has embeddings."""
    able = [measure for measure in measures.values() if measure.embed]
    return next((measure for measure in able if measure.about.kind == "clip_score"), able[-1] if able else None)


def _measure(
    source: ImageSource,
    columns: Mapping[str, _Column],
    missing: Mapping[str, Mapping[tuple[Block, int], None]],
    parts: Sequence[tuple[Block, int]],
    images: int,
    unusable_limit: float,
) -> None:
    with making(parts, images, f"measure {source.name}", unusable_limit) as (bar, write, unusable):
        for block, index in parts:
            with contextlib.suppress(DamagedPartError):
                pixels, usable = source.images(block, index)
                finite, measured = {f"the pictures of {source.name}": usable}, {}
                for name, each in columns.items():
                    if (block, index) in missing.get(name, ()):
                        values = each.parts.stored(each.function(pixels, block.prompts))
                        values[~usable] = np.nan
                        measured[name] = values
                        finite[f"the {name} of {source.name}"] = finite_rows(values)
                unusable.add(finite, image_of(block.prompts, index))
                for name, values in measured.items():
                    write(columns[name].parts.write, block, index, values)
                bar.update(len(pixels))
