"""The base of an experiment: what decides it, and loading it."""

from typing import Any

from hgdpo_jax import families
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.model import Model


def family_of(experiment: Experiment) -> type[Model]:
    """The family that the base belongs to."""
    return families.find(experiment.weights.family)


def base_fingerprints(experiment: Experiment) -> dict[str, Any]:
    """What decides the base, by the names of its settings: those left empty decide nothing."""
    family, weights = family_of(experiment), experiment.weights
    found = family.fingerprints(weights.base, weights.tokenizer, weights.vae)
    return {
        "weights.family": families.fingerprint(weights.family),
        "model.revision": family.revision,
        **{f"weights.{name}": value for name, value in found.items()},
    }


def name_of(experiment: Experiment, network: str) -> str:
    """How messages call a network of the base, with its source."""
    source = experiment.weights.vae if network == "VAE" and experiment.weights.vae else experiment.weights.base
    return f"the {network} of {source}"


def load_base(experiment: Experiment, dtype: str = "") -> Model:
    """The base of a config, unless told in the config's type."""
    weights = experiment.weights
    return family_of(experiment).load(
        weights.base,
        dtype or experiment.dtype,
        tokenizer=weights.tokenizer,
        vae=weights.vae,
        attention=experiment.attention,
    )


def load_autoencoder(experiment: Experiment) -> Model:
    """The base of a config without what draws, whose place on the devices the images can have."""
    return load_base(experiment).with_parameters(denoiser={}, text={})


def base_shapes(experiment: Experiment) -> Model:
    """The base by its configs alone; where none is named, of its family's published size."""
    weights = experiment.weights
    return family_of(experiment).without_weights(weights.base, weights.vae, experiment.dtype, experiment.attention)


def check_base(experiment: Experiment) -> None:
    """Raises UserError where the base, by its configs alone, draws no such images as `pool` describes."""
    pool, sources = experiment.pool, experiment.weights
    if not sources.base:
        raise UserError("no weights are given: set config.weights.base")
    base_shapes(experiment).require_drawable(pool.width, pool.height, pool.steps, pool.clip_skip)
