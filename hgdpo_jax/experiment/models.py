"""The base of an experiment: what decides it, and loading it."""

import functools
from typing import Any

import jax

from hgdpo_jax import families
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError, naming
from hgdpo_jax.families.model import Model
from hgdpo_jax.weights import kinds
from hgdpo_jax.weights.conversion import shapes_only


def family_of(experiment: Experiment) -> type[Model]:
    """The family that the base belongs to."""
    return families.find(experiment.weights.family)


def base_fingerprints(experiment: Experiment) -> dict[str, Any]:
    """What decides the base, by the names of its settings: those left empty decide nothing."""
    return {
        "weights.family": families.fingerprint(experiment.weights.family),
        "model.revision": family_of(experiment).revision,
        **{f"weights.{name}": value for name, value in weight_fingerprints(experiment).items()},
        **{f"schedule.{name}": value for name, value in experiment.schedule.given().items()},
    }


def weight_fingerprints(experiment: Experiment) -> dict[str, str]:
    """What decides the weights of the base and its own schedule, by setting; settings left empty decide nothing."""
    replacements = _replacements(experiment)
    with naming("config.weights.base"):
        return family_of(experiment).fingerprints(experiment.weights.base, **replacements)


def _replacements(experiment: Experiment) -> dict[str, Any]:
    """What replaces parts of the base; raises UserError where the family cannot replace one."""
    weights, schedule = experiment.weights, experiment.schedule
    given = {"tokenizer": weights.tokenizer, "vae": weights.vae, "schedule": schedule if schedule.given() else None}
    given = {name: value for name, value in given.items() if value}
    if unknown := sorted(given.keys() - set(family_of(experiment).replaceable)):
        section = "" if unknown[0] == "schedule" else "weights."
        raise UserError(
            f"config.{section}{unknown[0]} is set, but models of {weights.family} cannot replace this part of the "
            "base: leave it empty"
        )
    return given


def name_of(experiment: Experiment, role: str) -> str:
    """The networks of a role, with their source, for messages."""
    weights = experiment.weights
    source = weights.vae if role == "autoencoder" and weights.vae else weights.base
    return f"the {'text encoding' if role == 'text' else role} of {source}"


def load_base(experiment: Experiment, dtype: str = "") -> Model:
    """The base of a config, by default in the config's type."""
    options = {"attention": experiment.attention, **_replacements(experiment)}
    return family_of(experiment).load(experiment.weights.base, dtype or experiment.dtype, **options)


def load_autoencoder(experiment: Experiment) -> Model:
    """The base of a config without denoiser and text encoders, which leaves their memory to images."""
    return load_base(experiment).with_parameters(denoiser={}, text={})


def base_shapes(experiment: Experiment) -> Model:
    """The base from its configs alone; where none is named, the family's published size."""
    options = {"attention": experiment.attention, **_replacements(experiment)}
    return family_of(experiment).without_weights(experiment.weights.base, experiment.dtype, **options)


def check_base(experiment: Experiment) -> Model:
    """The base with shapes for parameters, whose files have been checked but for their content.

    Raises UserError where they are missing, damaged or of another model, or such images as `pool` describes cannot be
    drawn.
    """
    options = {"attention": experiment.attention, **_replacements(experiment)}
    weights, pool = experiment.weights, experiment.pool
    # The tokenizer may be in a checkpoint's folder.
    expected = {"tokenizer": "", "base": kinds.CHECKPOINT, "vae": kinds.VAE}
    with kinds.placed({f"config.weights.{name}": (getattr(weights, name), kind) for name, kind in expected.items()}):
        base = loaded_without_content(family_of(experiment), weights.base, experiment.dtype, tuple(options.items()))
    with naming("config.pool"):
        base.require_drawable(pool.width, pool.height, pool.steps, pool.clip_skip)
    return base


# Several stages check it.
@functools.cache
def loaded_without_content(family: type[Model], source: str, dtype: str, options: tuple[tuple[str, Any], ...]) -> Model:
    """A base with shapes for parameters; its cache is cleared before stages are checked."""
    with shapes_only():
        model = family.load(source, dtype, **dict(options))
    # A family that does not read its files by `to_tree` has loaded them.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.parameters)
    return model.with_parameters(**shapes)
