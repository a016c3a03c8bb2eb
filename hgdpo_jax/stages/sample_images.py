"""Draws prompts with the base and with the trained LoRA from the same noise, for the eye."""

import io
import re
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image

from hgdpo_jax import hosts
from hgdpo_jax.adapters import lora
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.data.unusable import Unusable, pair_of
from hgdpo_jax.evaluation.drawing import Drawn, draw_base_and_tuned
from hgdpo_jax.files import write_bytes, write_json
from hgdpo_jax.pages.pictures import ImagePair, pair_grid, png_bytes, resize_for_display
from hgdpo_jax.run_log import progress
from hgdpo_jax.stages.export_adapter import FILES
from hgdpo_jax.stages.generate_pool import base_fingerprints, load_base, sampling_settings
from hgdpo_jax.weights import lora_files

INPUTS = ("export_adapter",)
EVERY_HOST = True
_TEST_PROMPTS = 8
_SHEET_COLUMNS = 8
_SHEET_HEIGHT = 256


def settings(experiment: Experiment) -> dict:
    return {
        **base_fingerprints(experiment),
        "prompts": _prompts(experiment),
        "sample.seeds": experiment.sample.seeds,
        **drawing_settings(experiment),
    }


def drawing_settings(experiment: Experiment) -> dict:
    """What decides how the base and the tuned model draw, beside weights, prompts and number of images."""
    return {
        "seed": experiment.seed,
        "dtype": experiment.dtype,
        **sampling_settings(experiment),
        "adapter.scale": experiment.adapter.scale,
        "sample.latent_normalization": experiment.sample.latent_normalization,
    }


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"{len(_prompts(experiment))} prompts x {experiment.sample.seeds} images, base and tuned"


def run(experiment: Experiment, run: StageRun) -> None:
    prompts = _prompts(experiment)
    listed: list[dict] = [{"prompt": prompt, "images": []} for prompt in prompts]
    pairs = []
    unusable = Unusable(experiment.pool.unusable_limit, 2 * len(prompts) * experiment.sample.seeds)
    for drawn in draw(experiment, run.input("export_adapter"), prompts, experiment.sample.seeds, "sample_images"):
        drawn_of = [prompts[i] for i in drawn.prompts]
        for model, finite in (("base", drawn.base_usable), ("tuned model", drawn.tuned_usable)):
            unusable.add(finite, f"the pictures of the {model}", pair_of(drawn_of))
        if not hosts.is_first():
            continue
        usable = drawn.base_usable & drawn.tuned_usable
        shown = (rows[usable] for rows in (drawn.prompts, drawn.seeds, drawn.base, drawn.tuned))
        for i, seed, base, tuned in zip(*shown, strict=True):
            names = {model: f"images/{i:03d}-{_slug(prompts[i])}-{seed}-{model}.png" for model in ("base", "tuned")}
            write_bytes(run.folder / names["base"], png_bytes(base))
            write_bytes(run.folder / names["tuned"], png_bytes(tuned))
            listed[i]["images"].append(names)
            # All of them at full size would be a lot to keep for one sheet.
            base, tuned = (np.asarray(resize_for_display(image, _SHEET_HEIGHT)) for image in (base, tuned))
            pairs.append(ImagePair(prompts[i], base, tuned, {}, {}))
    if hosts.is_first():
        unusable.warn()
        unusable.require_rest(len(pairs))
        write_json(run.folder / "prompts.json", listed)
        write_bytes(run.folder / "sheet.png", _sheet(pairs))


def draw(
    experiment: Experiment, export_folder: epath.Path, prompts: list[str], seeds: int, description: str
) -> Iterator[Drawn]:
    """Chunks of images of the base and of the tuned model, with a progress bar."""
    model = load_base(experiment)
    targets = lora.find_targets(model.parameters["unet"])
    adapter = lora_files.load_adapter(export_folder / FILES["diffusers"], targets)
    with progress(total=2 * len(prompts) * seeds, description=description, unit="image") as bar:
        yield from draw_base_and_tuned(
            model,
            adapter,
            experiment.adapter.scale,
            prompts,
            seeds,
            seed=experiment.seed,
            width=experiment.pool.width,
            height=experiment.pool.height,
            steps=experiment.pool.steps,
            guidance=experiment.pool.guidance,
            negative_prompt=experiment.pool.negative_prompt,
            clip_skip=experiment.pool.clip_skip,
            latent_normalization=experiment.sample.latent_normalization,
            device_batch=experiment.pool.device_batch,
            report=bar.update,
        )


def _prompts(experiment: Experiment) -> list[str]:
    return (
        list(experiment.sample.prompts)
        or load_prompts(experiment.prompts.test, experiment.prompts.test_count)[:_TEST_PROMPTS]
    )


def _slug(prompt: str) -> str:
    """The prompt's first words as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-")


def _sheet(pairs: list[ImagePair]) -> bytes:
    """Bands of pairs, the base above the tuned image, as a PNG."""
    bands = [
        Image.open(io.BytesIO(pair_grid(pairs[i : i + _SHEET_COLUMNS], "Base", "Tuned", "", _SHEET_HEIGHT)))
        for i in range(0, len(pairs), _SHEET_COLUMNS)
    ]
    sheet = Image.new("RGB", (bands[0].width, sum(band.height for band in bands)), "white")
    for row, band in enumerate(bands):
        sheet.paste(band, (0, row * bands[0].height))
    return png_bytes(np.asarray(sheet))
