"""Draws prompts with the base and with the trained LoRA from the same noise, for viewing."""

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of, flat
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.unusable import Unusable, pair_of
from hgdpo_jax.experiment.drawing import drawing_of, drawing_settings, images_of_all_hosts
from hgdpo_jax.experiment.models import check_base, load_base
from hgdpo_jax.experiment.prompts import sampled_count, sampled_prompts
from hgdpo_jax.files import write_bytes, write_json
from hgdpo_jax.pages.pictures import ImagePair, pair_grid, png_bytes, resize_for_display
from hgdpo_jax.run_log import progress
from hgdpo_jax.settings import decisive
from hgdpo_jax.texts import slug
from hgdpo_jax.weights import lora_files

INPUTS = ("export_adapter",)
EVERY_HOST = True
_SHEET_HEIGHT = 256
# Images in memory at once: 140 MB per model at 704x1024 pixels.
_CHUNK_IMAGES = 64


def needs(experiment: Experiment) -> tuple[str, ...]:
    return ("weights.base",) if experiment.sample.prompts else ("weights.base", "prompts.test")


def folder_name(experiment: Experiment) -> str:
    """A sample with a name or prompts of its own has a folder of its own, so that it stands in no other's way."""
    sample, name = experiment.sample, experiment.sample.name
    if sample.prompts and not name:
        # With all that one changes to compare pictures; the weights' content would have to be read.
        values = {**decisive(sample), **decisive(experiment.sampling), **decisive(experiment.adapter)}
        values |= {"prompts": list(sample.prompts), "seed": experiment.seed}
        name = f"{_short(sample.prompts[0])}-{fingerprint_of(values)[:6]}".lstrip("-")
    return f"sample_images-{name}" if name else "sample_images"


def settings(experiment: Experiment) -> dict:
    return {
        **drawing_settings(experiment),
        "adapter.scale": experiment.adapter.scale,
        **flat({"sample": decisive(experiment.sample)}),
        "prompts": sampled_prompts(experiment),
    }


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"{sampled_count(experiment)} prompts x {experiment.sample.seeds} images, base and tuned"


check = check_base


def run(experiment: Experiment, run: StageRun) -> None:
    prompts, seeds, model = sampled_prompts(experiment), experiment.sample.seeds, load_base(experiment)
    adapter_file = run.input("export_adapter") / lora_files.EXPORTED["diffusers"]
    adapter, scale = model.lora_names.load_adapter(adapter_file, model.lora_targets), experiment.adapter.scale
    drawings = {
        # The base is the LoRA at scale zero, which needs no second program.
        "base": drawing_of(experiment, model, [(adapter, jnp.float32(0.0))]),
        "tuned": drawing_of(experiment, model, [(adapter, jnp.float32(scale))], experiment.sample.latent_normalization),
    }
    listed: list[dict] = [{"prompt": prompt, "images": []} for prompt in prompts]
    pairs = []
    prompt_of, seed_of = np.divmod(np.arange(len(prompts) * seeds), seeds)
    unusable = Unusable(experiment.pool.unusable_limit, 2 * len(prompt_of))
    # Whole batches of every host, so that no row is drawn only to fill one up.
    batch = drawings["base"].device_batch * jax.device_count()
    chunk = batch * max(1, _CHUNK_IMAGES // batch)
    with progress(total=2 * len(prompt_of), description="sample_images", unit="image") as bar:
        for start in range(0, len(prompt_of), chunk):
            rows, indices = prompt_of[start : start + chunk], seed_of[start : start + chunk]
            texts, drawn, usable = [prompts[i] for i in rows], [], np.ones(len(rows), bool)
            for model_name, drawing in drawings.items():
                images, finite = images_of_all_hosts(drawing, texts, indices, bar.update)
                unusable.add({f"the pictures of the {model_name} model": finite}, pair_of(texts))
                drawn.append(images)
                usable &= finite
            if not hosts.is_first():
                continue
            for i, seed, base, tuned in zip(*(each[usable] for each in (rows, indices, *drawn)), strict=True):
                names = {model: f"images/{i:03d}-{_short(prompts[i])}-{seed}-{model}.png" for model in drawings}
                write_bytes(run.folder / names["base"], png_bytes(base))
                write_bytes(run.folder / names["tuned"], png_bytes(tuned))
                listed[i]["images"].append(names)
                # Reduced here, because all images at full size would take too much memory.
                reduced = [np.asarray(resize_for_display(image, _SHEET_HEIGHT)) for image in (base, tuned)]
                pairs.append(ImagePair(prompts[i], reduced))
    if hosts.is_first():
        unusable.warn()
        unusable.require_rest(len(pairs))
        write_json(run.folder / "prompts.json", listed)
        write_bytes(run.folder / "sheet.png", pair_grid(pairs, ("Base", "Tuned"), "", _SHEET_HEIGHT))
        print(f"sample_images: {run.folder / 'sheet.png'}", flush=True)


def _short(prompt: str) -> str:
    """The beginning of a prompt as a part of file names; empty where it has no letter of ASCII."""
    return slug(prompt.lower().encode("ascii", "ignore").decode(), "-")[:40]
