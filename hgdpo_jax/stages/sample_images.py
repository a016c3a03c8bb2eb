"""Draws prompts with the base and with the trained LoRA from the same noise, for the eye."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.unusable import Unusable, pair_of
from hgdpo_jax.experiment.drawing import drawing_of, drawing_settings
from hgdpo_jax.experiment.models import load_base
from hgdpo_jax.experiment.prompts import test_prompts
from hgdpo_jax.experiment.samples import Drawn, draw_base_and_tuned
from hgdpo_jax.files import write_bytes, write_json
from hgdpo_jax.pages.pictures import ImagePair, pair_grid, png_bytes, resize_for_display
from hgdpo_jax.run_log import progress
from hgdpo_jax.settings import decisive
from hgdpo_jax.texts import slug
from hgdpo_jax.weights import lora_files

INPUTS = ("export_adapter",)
EVERY_HOST = True
_TEST_PROMPTS = 8
_SHEET_HEIGHT = 256


def settings(experiment: Experiment) -> dict:
    return {
        **drawing_settings(experiment),
        "adapter.scale": experiment.adapter.scale,
        **{f"sample.{name}": value for name, value in decisive(experiment.sample).items()},
        "prompts": _prompts(experiment),
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
            unusable.add({f"the pictures of the {model}": finite}, pair_of(drawn_of))
        if not hosts.is_first():
            continue
        usable = drawn.base_usable & drawn.tuned_usable
        shown = (rows[usable] for rows in (drawn.prompts, drawn.seeds, drawn.base, drawn.tuned))
        for i, seed, base, tuned in zip(*shown, strict=True):
            words = slug(prompts[i].lower().encode("ascii", "ignore").decode(), "-")[:40]
            names = {model: f"images/{i:03d}-{words}-{seed}-{model}.png" for model in ("base", "tuned")}
            write_bytes(run.folder / names["base"], png_bytes(base))
            write_bytes(run.folder / names["tuned"], png_bytes(tuned))
            listed[i]["images"].append(names)
            # All of them at full size would be a lot to keep for one sheet.
            images = [np.asarray(resize_for_display(image, _SHEET_HEIGHT)) for image in (base, tuned)]
            pairs.append(ImagePair(prompts[i], images))
    if hosts.is_first():
        unusable.warn()
        unusable.require_rest(len(pairs))
        write_json(run.folder / "prompts.json", listed)
        write_bytes(run.folder / "sheet.png", pair_grid(pairs, ("Base", "Tuned"), "", _SHEET_HEIGHT))


def draw(
    experiment: Experiment, export_folder: epath.Path, prompts: list[str], seeds: int, description: str
) -> Iterator[Drawn]:
    """Chunks of images of the base and of the tuned model, with a progress bar."""
    model, sample = load_base(experiment), experiment.sample
    adapter = model.load_adapter(export_folder / lora_files.EXPORTED["diffusers"], model.lora_targets)
    drawings = {
        # A scale of zero is the base, in the program that is compiled already.
        "base": drawing_of(experiment, model, [(adapter, jnp.float32(0.0))]),
        "tuned": drawing_of(
            experiment, model, [(adapter, jnp.float32(experiment.adapter.scale))], sample.latent_normalization
        ),
    }
    with progress(total=2 * len(prompts) * seeds, description=description, unit="image") as bar:
        yield from draw_base_and_tuned(drawings, prompts, seeds, bar.update)


def _prompts(experiment: Experiment) -> list[str]:
    return list(experiment.sample.prompts) or test_prompts(experiment)[:_TEST_PROMPTS]
