"""The base of an experiment: what decides it, and loading it."""

import functools
from typing import Any

from etils import epath

from hgdpo_jax.base_config import Experiment
from hgdpo_jax.diffusion.schedule import STABLE_DIFFUSION
from hgdpo_jax.errors import as_user_error
from hgdpo_jax.families.stable_diffusion import files
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.sources import resolve_source


def base_fingerprints(experiment: Experiment) -> dict[str, Any]:
    """What decides the base, by the names of its settings: those left empty decide nothing."""

    def fingerprint(name: str, weights: bool) -> dict[str, str]:
        given = getattr(experiment.weights, name)
        if not given and name != "base":
            return {}
        source = resolve_source(given, weights)
        return {f"weights.{name}": folders.content_fingerprint(source, weights)}

    weights = fingerprint("base", True) | fingerprint("tokenizer", False) | fingerprint("vae", True)
    schedule = _schedule_settings(resolve_source(experiment.weights.base))
    return {"model.revision": StableDiffusion.revision, **weights, **schedule}


# Every stage asks, and pickled weights take a second to open.
@functools.cache
def _schedule_settings(base: epath.Path) -> dict[str, str]:
    """What a base in one file says of an unusual noise schedule, or the .yaml beside it; a folder's is its content."""
    config = {} if base.is_dir() else files.read_scheduler(base)
    return {f"weights.base.{name}": str(value) for name, value in config.items() if value != STABLE_DIFFUSION.get(name)}


def name_of(experiment: Experiment, network: str) -> str:
    """How messages call a network of the base, with its source."""
    source = experiment.weights.vae if network == "VAE" and experiment.weights.vae else experiment.weights.base
    return f"the {network} of {source}"


def load_base(experiment: Experiment, dtype: str = "") -> StableDiffusion:
    """The base of a config, unless told in the config's type."""
    weights = experiment.weights
    return StableDiffusion.load(
        weights.base,
        dtype or experiment.dtype,
        tokenizer=weights.tokenizer,
        vae=weights.vae,
        attention=experiment.attention,
    )


def load_autoencoder(experiment: Experiment) -> StableDiffusion:
    """The base of a config without what draws, whose place on the devices the images can have."""
    return load_base(experiment).with_parameters(unet={}, text_encoder={})


def check_base(experiment: Experiment) -> None:
    """Raises UserError where the base, by its configs alone, draws no such images as `pool` describes."""
    base, pool = experiment.weights.base, experiment.pool
    configs = files.read_configs(base, experiment.weights.vae)
    with as_user_error(f"the configs of {base} describe no model that can be built"):
        model = StableDiffusion.without_weights(configs, experiment.dtype, experiment.attention)
    model.require_drawable(pool.width, pool.height, pool.steps, pool.clip_skip)
