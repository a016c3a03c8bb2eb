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
from hgdpo_jax.diffusion.guidance import guidance_scale
from hgdpo_jax.experiment.encoding import make_encode, make_reencode
from hgdpo_jax.experiment.models import base_shapes
from hgdpo_jax.experiment.scoring import make_score
from hgdpo_jax.experiment.training import ROWS, make_finetuning, make_training
from hgdpo_jax.experiment.work import TRAINING
from hgdpo_jax.families.model import Model
from hgdpo_jax.preflight.compilation import Measurement, Program, measure
from hgdpo_jax.preflight.least import least_step_flops
from hgdpo_jax.preflight.published import PICK_SCORE, PREPROCESSOR
from hgdpo_jax.preflight.targets import Chip
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.scorers.scorer import Scorer
from hgdpo_jax.scorers.sources import ScorerSource
from hgdpo_jax.sharding import batch_shapes, data_mesh, parameter_shapes, replicated_shapes, training_mesh
from hgdpo_jax.training.accumulation import accumulation_steps
from hgdpo_jax.weights import clip_files
from hgdpo_jax.weights.sources import resolve_source

# Each stage that has a program here, with the setting for the number of rows that one device takes at once.
BATCH_SETTINGS = {
    "generate_pool": "pool.device_batch",
    "score_pool": "scoring.device_batch",
    "select_pairs": "scoring.device_batch",
    "train_policy": "train.device_batch",
    "evaluate_policy": "pool.device_batch",
    "encode_images": "scoring.device_batch",
    "finetune_base": "finetune.device_batch",
}


def measure_program(
    experiment: Experiment, name: str, device_batch: int, devices: Sequence[jax.Device], chip: Chip
) -> Measurement:
    """Compiles one program of an experiment with so many rows on each of the devices at once."""
    setup = make_setup(experiment, name, device_batch, data_mesh(devices))
    return measure(lambda mesh: build_program(name, dataclasses.replace(setup, mesh=mesh)), devices, chip)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What decides a program: the experiment, its base without weights, the devices, and their rows.

    A device has `device_batch` rows at once, in training in each of the `parts` of a step.
    """

    experiment: Experiment
    base: Model
    device_batch: int
    parts: int
    mesh: Mesh

    @property
    def row_count(self) -> int:
        """Rows of a batch over all devices and parts."""
        return self.parts * self.device_batch * self.mesh.size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one image's latents."""
        return self.base.latent_shape(self.experiment.pool.width, self.experiment.pool.height)

    @property
    def adapter(self) -> Any:
        """A LoRA, as shapes without devices."""
        targets = self.base.lora_targets
        return jax.eval_shape(lambda: lora.initialize(jax.random.key(0), targets, self.experiment.adapter.rank))

    def parameters(self, *names: str) -> tuple[dict, dict]:
        """The base's parameters of these names, which a program reads, and all others."""
        found = replicated_shapes(self.base.parameters, self.mesh)
        return {name: found.pop(name) for name in names}, found

    def rows(self, shape: Sequence[int], dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        """A batch of arrays."""
        return batch_shapes(jax.ShapeDtypeStruct((self.row_count, *shape), dtype), self.mesh)

    def conditioning(self, dtype=jnp.float32) -> Any:
        """What the denoiser reads of a batch of prompts."""
        shapes = self.base.conditioning_shapes(self.row_count)
        return batch_shapes(jax.tree.map(lambda leaf: leaf.update(dtype=dtype), shapes), self.mesh)

    def key(self) -> Any:
        """A random key, on every device."""
        return replicated_shapes(jax.eval_shape(lambda: jax.random.key(0)), self.mesh)

    def training(self, section: str) -> "Setup":
        """The same on the mesh that training shards parameters over, for an experiment whose batch has these rows.

        On a single device the parameters are whole.
        """
        options = getattr(self.experiment, section)
        mesh = training_mesh(math.gcd(options.fsdp, self.mesh.size), list(self.mesh.devices.flat))
        options = dataclasses.replace(options, device_batch=self.device_batch, batch_size=self.row_count)
        return dataclasses.replace(
            self, experiment=dataclasses.replace(self.experiment, **{section: options}), mesh=mesh
        )


def make_setup(experiment: Experiment, name: str, device_batch: int, mesh: Mesh) -> Setup:
    """That of a program on the devices of a mesh, with as many parts as the config's batch has there."""
    parts = 1
    if section := TRAINING.get(name):
        options = getattr(experiment, section)
        parts = accumulation_steps(options.batch_size, options.device_batch, mesh.size)
    return Setup(experiment, base_shapes(experiment), device_batch, parts, mesh)


def build_program(name: str, setup: Setup) -> Program:
    """A program with shapes for its arguments, which lie on the devices of the mesh."""
    return _BUILDERS[name](setup)


def _build_sampling(setup: Setup, adapters: Sequence[tuple] = (), latent_normalization: bool = False) -> Program:
    weights, resident = setup.parameters("denoiser")
    pool, conditioning = setup.experiment.pool, setup.conditioning()
    sample = functools.partial(
        setup.base.sample,
        steps=pool.steps,
        guidance=guidance_scale(pool.guidance),
        latent_normalization=latent_normalization,
    )
    arguments = (weights, setup.rows(setup.latent_shape), conditioning, conditioning, adapters)
    return Program(jax.jit(sample), arguments, weights, [adapter for adapter, _ in adapters], resident)


def _build_evaluation(setup: Setup) -> Program:
    adapter = replicated_shapes((setup.adapter, jax.ShapeDtypeStruct((), jnp.float32)), setup.mesh)
    return _build_sampling(setup, (adapter,), setup.experiment.sample.latent_normalization)


def _build_scoring(setup: Setup) -> Program:
    experiment = setup.experiment
    scorer, prompt = _scorer(experiment.weights.scorer, experiment.dtype, experiment.scoring.framing)
    weights = (setup.parameters("autoencoder")[0], replicated_shapes(scorer.parameters, setup.mesh))
    latents, prompts = setup.rows(setup.latent_shape, jnp.float16), setup.rows(prompt.shape, prompt.dtype)
    return Program(make_score(setup.base, scorer), (*weights, latents, prompts), weights)


# A program for many devices is built for one device too.
@functools.cache
def _scorer(source: str, dtype: str, framing: str) -> tuple[Scorer, jax.ShapeDtypeStruct]:
    """The scorer that chooses the pairs, with shapes for weights, and the shape of an encoded prompt.

    For a PickScore its config is enough; weights of other kinds are read.
    """
    parsed = ScorerSource.parse(source) if source else None
    if parsed and parsed.kind != "pick_score":
        loaded = parsed.load(dtype, framing)
        assert isinstance(loaded, Scorer), "a function of the user's own has no program"
        prompt = loaded.encode_prompts("a portrait")[0]
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), loaded.parameters)
        return dataclasses.replace(loaded, parameters=shapes), jax.ShapeDtypeStruct(prompt.shape, prompt.dtype)
    config = clip_files.read_config(resolve_source(parsed.source, weights=())) if parsed else PICK_SCORE
    scorer = PickScore.without_weights(config, PREPROCESSOR, dtype, framing)
    return scorer, jax.ShapeDtypeStruct((scorer.clip.config.projection_dim,), jnp.float32)


def _build_selection(setup: Setup) -> Program:
    weights, _ = setup.parameters("autoencoder")
    return Program(make_reencode(setup.base), (weights, setup.rows(setup.latent_shape, jnp.float16)), weights)


def _build_training(setup: Setup) -> Program:
    setup = setup.training("train")
    experiment, base, mesh = setup.experiment, setup.base, setup.mesh
    initial_state, step = make_training(experiment, base, mesh)
    state = parameter_shapes(jax.eval_shape(initial_state), mesh)
    weights, resident = setup.parameters("denoiser", "text")
    weights = parameter_shapes(weights, mesh)
    batch = dict.fromkeys(ROWS[experiment.objective.rows].latents, setup.rows(setup.latent_shape))
    batch["tokens"] = batch_shapes(base.token_shapes(setup.row_count), mesh)
    least = functools.partial(
        least_step_flops,
        base,
        setup.adapter,
        experiment.objective,
        rows=setup.row_count // mesh.size,
        latent_shape=setup.latent_shape,
        clip_skip=experiment.pool.clip_skip,
    )
    arguments = (state, weights, batch, setup.key(), *step.keywords.values())
    return Program(step.func, arguments, weights, state, resident, least)


def _build_encoding(setup: Setup) -> Program:
    weights, resident = setup.parameters("autoencoder")
    pixels = setup.rows((setup.experiment.pool.height, setup.experiment.pool.width, 3), jnp.uint8)
    return Program(make_encode(setup.base), (weights, pixels), weights, resident=resident)


def _build_finetuning(setup: Setup) -> Program:
    setup = setup.training("finetune")
    initial_state, step = make_finetuning(setup.experiment, setup.base, setup.mesh)
    # Loaded in float32, computed in the config's type.
    weights, resident = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), setup.parameters("denoiser"))
    state = parameter_shapes(jax.eval_shape(initial_state, weights["denoiser"]), setup.mesh)
    height, width, channels = setup.latent_shape
    batch = {
        "moments": setup.rows((height, width, 2 * channels), jnp.float16),
        "conditioning": setup.conditioning(jnp.float16),
    }
    arguments = (state, None, batch, setup.key(), *step.keywords.values())
    return Program(step.func, arguments, state=state, resident=resident)


_BUILDERS = {
    "generate_pool": _build_sampling,
    "score_pool": _build_scoring,
    "select_pairs": _build_selection,
    "train_policy": _build_training,
    "evaluate_policy": _build_evaluation,
    "encode_images": _build_encoding,
    "finetune_base": _build_finetuning,
}
