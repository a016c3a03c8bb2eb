"""The programs of an experiment, as its stages build them, with shapes for weights and batches."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.experiment.encoding import make_encode, make_reencode
from hgdpo_jax.experiment.models import base_shapes
from hgdpo_jax.experiment.scoring import make_score
from hgdpo_jax.experiment.training import ROWS, make_finetuning, make_training
from hgdpo_jax.families.model import Model
from hgdpo_jax.preflight.compilation import Measurement, Program, measure
from hgdpo_jax.preflight.least import least_step_flops
from hgdpo_jax.preflight.published import PICK_SCORE, PREPROCESSOR
from hgdpo_jax.preflight.targets import Chip
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.scorers.scorer import Scorer
from hgdpo_jax.scorers.sources import ScorerSource
from hgdpo_jax.sharding import batch_shapes, parameter_shapes, replicated_shapes, training_mesh
from hgdpo_jax.training.accumulation import accumulation_steps
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.sources import resolve_source

# Of each stage that has a program here, the setting that says how many rows one device takes at once.
BATCH_SETTINGS = {
    "generate_pool": "pool.device_batch",
    "score_pool": "scoring.device_batch",
    "select_pairs": "scoring.device_batch",
    "train_policy": "train.device_batch",
    "evaluate_policy": "pool.device_batch",
    "encode_images": "scoring.device_batch",
    "finetune_base": "finetune.device_batch",
}
TRAINING = {"train_policy": "train", "finetune_base": "finetune"}


def measure_program(
    experiment: Experiment, name: str, device_batch: int, devices: Sequence[jax.Device], chip: Chip
) -> Measurement:
    """Compiles one program of an experiment with so many rows on each of the devices at once."""
    setup = make_setup(experiment, name, device_batch, len(devices))
    return measure(functools.partial(build_program, name, setup), devices, chip)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What decides a program beside its devices: the base without weights.

    A device has `device_batch` rows at once, in training in each of `parts` parts of a step.
    """

    experiment: Experiment
    base: Model
    device_batch: int
    parts: int


def make_setup(experiment: Experiment, name: str, device_batch: int, devices: int) -> Setup:
    """That of a program on so many devices, with as many parts as the config's batch has there."""
    parts = 1
    if section := TRAINING.get(name):
        options = getattr(experiment, section)
        parts = accumulation_steps(options.batch_size, options.device_batch, devices)
    return Setup(experiment, base_shapes(experiment), device_batch, parts)


def _scorer(experiment: Experiment) -> tuple[Scorer, jax.ShapeDtypeStruct]:
    """The scorer that chooses the pairs, with shapes for weights, and the shape of an encoded prompt.

    Of a PickScore its config is enough; weights of other kinds are read.
    """
    source, framing = experiment.weights.scorer, experiment.scoring.framing
    parsed = ScorerSource.parse(source) if source else None
    if parsed and parsed.kind != "pick_score":
        loaded = parsed.load(experiment.dtype, framing)
        assert isinstance(loaded, Scorer), "a function of the user's own has no program"
        prompt = loaded.encode_prompts("a portrait")[0]
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), loaded.parameters)
        return dataclasses.replace(loaded, parameters=shapes), jax.ShapeDtypeStruct(prompt.shape, prompt.dtype)
    files = PICK_SCORE
    if parsed:
        files = folders.read_json(resolve_source(parsed.source, weights=()) / "config.json")
    scorer = PickScore.without_weights(files, PREPROCESSOR, experiment.dtype, framing)
    return scorer, jax.ShapeDtypeStruct((scorer.clip.config.projection_dim,), jnp.float32)


def build_program(name: str, setup: Setup, mesh: Mesh) -> Program:
    """A program with shapes for its arguments, which lie on the devices of the mesh."""
    parameters = replicated_shapes(setup.base.parameters, mesh)
    return _BUILDERS[name](setup, parameters, mesh)


def _build_generation(setup: Setup, parameters: dict, mesh: Mesh) -> Program:
    pool, weights = setup.experiment.pool, {"denoiser": parameters.pop("denoiser")}
    function = jax.jit(functools.partial(setup.base.sample, steps=pool.steps, guidance=pool.guidance))
    arguments = (weights, *_sampling_inputs(setup, mesh), ())
    return Program(function, arguments, weights=weights, resident=parameters)


def _build_evaluation(setup: Setup, parameters: dict, mesh: Mesh) -> Program:
    experiment, weights = setup.experiment, {"denoiser": parameters.pop("denoiser")}
    sample = functools.partial(
        setup.base.sample,
        steps=experiment.pool.steps,
        guidance=experiment.pool.guidance,
        latent_normalization=experiment.sample.latent_normalization,
    )
    adapter, scale = replicated_shapes((_adapter(setup), jax.ShapeDtypeStruct((), jnp.float32)), mesh)
    arguments = (weights, *_sampling_inputs(setup, mesh), ((adapter, scale),))
    return Program(jax.jit(sample), arguments, weights=weights, state=adapter, resident=parameters)


def _build_scoring(setup: Setup, parameters: dict, mesh: Mesh) -> Program:
    scorer, prompt = _scorer(setup.experiment)
    weights = ({"autoencoder": parameters["autoencoder"]}, replicated_shapes(scorer.parameters, mesh))
    prompts = _rows(prompt.shape, setup, mesh, prompt.dtype)
    arguments = (*weights, _latents(setup, mesh, jnp.float16), prompts)
    return Program(make_score(setup.base, scorer), arguments, weights=weights)


def _build_selection(setup: Setup, parameters: dict, mesh: Mesh) -> Program:
    weights = {"autoencoder": parameters["autoencoder"]}
    arguments = (weights, _latents(setup, mesh, jnp.float16))
    return Program(make_reencode(setup.base), arguments, weights=weights)


def _build_training(setup: Setup, parameters: dict, mesh: Mesh) -> Program:
    mesh = _training_mesh(setup, "train", mesh)
    initial_state, step = make_training(_cut(setup, "train", mesh), setup.base, mesh)
    state = parameter_shapes(jax.eval_shape(initial_state), mesh)
    base = parameter_shapes({name: parameters.pop(name) for name in ("denoiser", "text")}, mesh)
    latents = _latents(setup, mesh)
    tokens = batch_shapes(setup.base.token_shapes(_row_count(setup, mesh)), mesh)
    batch = dict.fromkeys(ROWS[setup.experiment.objective.rows].latents, latents) | {"tokens": tokens}
    return Program(
        step,
        (state, base, batch, _key(mesh)),
        weights=base,
        state=state,
        resident=parameters,
        least_flops=functools.partial(_least_training_flops, setup),
    )


def _least_training_flops(setup: Setup) -> float:
    return least_step_flops(
        setup.base,
        _adapter(setup),
        setup.experiment.objective,
        rows=setup.parts * setup.device_batch,
        latent_shape=_latent_shape(setup),
        clip_skip=setup.experiment.pool.clip_skip,
    )


def _build_encoding(setup: Setup, parameters: dict, mesh: Mesh) -> Program:
    weights = {"autoencoder": parameters.pop("autoencoder")}
    pixels = _rows((setup.experiment.pool.height, setup.experiment.pool.width, 3), setup, mesh, jnp.uint8)
    return Program(make_encode(setup.base), (weights, pixels), weights=weights, resident=parameters)


def _build_finetuning(setup: Setup, parameters: dict, mesh: Mesh) -> Program:
    mesh = _training_mesh(setup, "finetune", mesh)
    initial_state, step = make_finetuning(_cut(setup, "finetune", mesh), setup.base, mesh)
    # Loaded in float32, computed in the config's type.
    parameters = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), parameters)
    state = parameter_shapes(jax.eval_shape(initial_state, parameters.pop("denoiser")), mesh)
    height, width, channels = _latent_shape(setup)
    batch = {
        "moments": _rows((height, width, 2 * channels), setup, mesh, jnp.float16),
        "conditioning": _conditioning(setup, mesh, jnp.float16),
    }
    return Program(step, (state, None, batch, _key(mesh)), state=state, resident=parameters)


_BUILDERS = {
    "generate_pool": _build_generation,
    "score_pool": _build_scoring,
    "select_pairs": _build_selection,
    "train_policy": _build_training,
    "evaluate_policy": _build_evaluation,
    "encode_images": _build_encoding,
    "finetune_base": _build_finetuning,
}


def _training_mesh(setup: Setup, section: str, mesh: Mesh) -> Mesh:
    """The devices of a mesh as training divides its parameters over them; one device alone has them whole."""
    return training_mesh(math.gcd(getattr(setup.experiment, section).fsdp, mesh.size), list(mesh.devices.flat))


def _cut(setup: Setup, section: str, mesh: Mesh) -> Experiment:
    """The experiment with a batch of as many parts on the mesh as the setup has."""
    rows = setup.parts * setup.device_batch * mesh.size
    options = dataclasses.replace(getattr(setup.experiment, section), device_batch=setup.device_batch, batch_size=rows)
    return dataclasses.replace(setup.experiment, **{section: options})


def _adapter(setup: Setup) -> Any:
    targets = setup.base.lora_targets
    return jax.eval_shape(lambda: lora.initialize(jax.random.key(0), targets, setup.experiment.adapter.rank))


def _sampling_inputs(setup: Setup, mesh: Mesh) -> tuple:
    """Initial latents, conditioning of the prompts, conditioning that guidance leads away from."""
    conditioning = _conditioning(setup, mesh)
    return _latents(setup, mesh), conditioning, conditioning


def _conditioning(setup: Setup, mesh: Mesh, dtype=jnp.float32):
    shapes = setup.base.conditioning_shapes(_row_count(setup, mesh))
    return batch_shapes(jax.tree.map(lambda leaf: leaf.update(dtype=dtype), shapes), mesh)


def _latents(setup: Setup, mesh: Mesh, dtype=jnp.float32):
    return _rows(_latent_shape(setup), setup, mesh, dtype)


def _rows(shape: Sequence[int], setup: Setup, mesh: Mesh, dtype=jnp.float32):
    """A batch of arrays."""
    return batch_shapes(jax.ShapeDtypeStruct((_row_count(setup, mesh), *shape), dtype), mesh)


def _row_count(setup: Setup, mesh: Mesh) -> int:
    return setup.parts * setup.device_batch * mesh.size


def _latent_shape(setup: Setup) -> tuple[int, int, int]:
    return setup.base.latent_shape(setup.experiment.pool.width, setup.experiment.pool.height)


def _key(mesh: Mesh):
    return replicated_shapes(jax.eval_shape(lambda: jax.random.key(0)), mesh)
