"""Encodes a folder of captioned images once for fine-tuning: latents of the images, conditioning of the captions."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.batching import chosen, finite_rows, map_batches, repeated
from hgdpo_jax.compilation import usable_cores
from hgdpo_jax.data.encoded_images import ROWS_PER_FILE, EncodedImages, half
from hgdpo_jax.data.image_folder import ImageFolder
from hgdpo_jax.data.pool import write_behind
from hgdpo_jax.data.prompts import warn_long_prompts
from hgdpo_jax.data.unusable import Unusable
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.drawing import batch_of_block
from hgdpo_jax.experiment.encoding import make_encode
from hgdpo_jax.experiment.models import base_fingerprints, check_base, load_base, name_of
from hgdpo_jax.families.protocol import Conditioning
from hgdpo_jax.files import write_json
from hgdpo_jax.run_log import progress

INPUTS = ()
NEEDS = ("weights.base", "finetune.images")
EVERY_HOST = True
_CAPTIONS_SHOWN = 8


def settings(experiment: Experiment) -> dict:
    return {
        **base_fingerprints(experiment),
        "dtype": experiment.dtype,
        "images": _images(experiment).fingerprint,
        # As for drawing, so that the base is fine-tuned on the size and the conditioning that it later draws with.
        "pool.width": experiment.pool.width,
        "pool.height": experiment.pool.height,
        "pool.clip_skip": experiment.pool.clip_skip,
    }


def plan(experiment: Experiment, run: StageRun) -> str:
    images = len(_images(experiment))
    done = images - sum(map(len, EncodedImages(run.folder / "rows", images).missing()))
    words = f"{images:,} images encoded at {experiment.pool.width}x{experiment.pool.height}"
    return f"{words}; done are {done:,}" if 0 < done < images else words


def check(experiment: Experiment) -> None:
    """Raises UserError if the base cannot draw images of this size; `settings` reads the folder and its table."""
    check_base(experiment)


def rehearse(experiment: Experiment) -> None:
    """Raises UserError if an image is missing, no image, or too small."""
    images = _images(experiment)
    with progress(total=len(images), description="encode_images: sizes", unit="image") as bar:
        images.require_images(experiment.pool.width, experiment.pool.height, bar.update)


def run(experiment: Experiment, run: StageRun) -> None:
    images, model = _images(experiment), load_base(experiment)
    warn_long_prompts(model.long_prompts(images.captions))
    encoded = EncodedImages(run.folder / "rows", len(images))
    missing = hosts.own(hosts.chosen_by_first(encoded.files(), encoded.missing))
    empty = model.encode_prompts([""])
    device_batch = batch_of_block(experiment.scoring.device_batch, min(ROWS_PER_FILE, len(images)))
    encode = functools.partial(make_encode(model), {"autoencoder": model.parameters["autoencoder"]})
    images_each = len(images) // hosts.count()
    unusable = Unusable(experiment.pool.unusable_limit, images_each)

    def keep(rows: range, moments: np.ndarray, conditioning: Conditioning) -> None:
        values = {"autoencoder": moments, "text": conditioning}
        finite = {f"the values of {name_of(experiment, of)}": finite_rows(half(each)) for of, each in values.items()}
        unusable.add(finite, images.names[rows.start : rows.stop].__getitem__)
        encoded.write(rows, moments, conditioning)

    with (
        progress(
            total=images_each, initial=images_each - sum(map(len, missing)), description="encode_images", unit="image"
        ) as bar,
        write_behind() as write,
    ):
        for rows, pixels in zip(
            missing, _pixels(images, missing, experiment.pool.width, experiment.pool.height), strict=True
        ):
            moments = map_batches(encode, pixels, device_batch, bar.update)
            captions = images.captions[rows.start : rows.stop]
            conditioning = model.encode_prompts(captions, experiment.pool.clip_skip, device_batch)
            # The empty prompt of guidance uses all layers of the text encoder.
            without = np.array([not caption for caption in captions])
            write(keep, rows, moments, chosen(without, repeated(empty, len(without)), conditioning))
    unusable.warn()
    # Fine-tuning draws samples of these and does not read the folder again.
    shown = list(itertools.islice(dict.fromkeys(filter(None, images.captions)), _CAPTIONS_SHOWN))
    hosts.wait()
    if hosts.is_first():
        left_out = encoded.unusable()
        unusable.require_rest(len(images) - len(left_out))
        values = {"images": len(images), "captions": shown}
        write_json(run.folder / "images.json", values | ({"unusable": left_out} if left_out else {}))


def _pixels(images: ImageFolder, missing: Sequence[range], width: int, height: int) -> Iterator[np.ndarray]:
    """Pixels `[n, height, width, 3]` of the rows of each missing file, decoded ahead on threads."""
    options = grain.ReadOptions(num_threads=usable_cores(), prefetch_buffer_size=ROWS_PER_FILE)
    decoded = (
        grain.MapDataset.source(list(itertools.chain(*missing)))
        .map(lambda row: images.image(row, width, height))
        .to_iter_dataset(options)
    )
    # Every file but the last has this many rows.
    return iter(decoded.batch(ROWS_PER_FILE, drop_remainder=False))


def _images(experiment: Experiment) -> ImageFolder:
    if not experiment.finetune.images:
        raise UserError(
            "no images are given: set config.finetune.images to a folder of images with metadata.jsonl in it"
        )
    return ImageFolder.open(experiment.finetune.images, experiment.finetune.caption_column)
