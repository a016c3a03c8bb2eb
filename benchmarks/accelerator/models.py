"""Stable Diffusion 1.5 and PickScore at full size, or tiny for a rehearsal, with the same random weights everywhere."""

import concurrent.futures
import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from hgdpo_jax import PickScore, StableDiffusion
from hgdpo_jax.families.stable_diffusion.configs import SCHEDULER
from hgdpo_jax.families.stable_diffusion.model import by_file, by_role
from hgdpo_jax.preflight.published import PICK_SCORE, PREPROCESSOR
from hgdpo_jax.sharding import data_mesh, replicate

RANK = 8
BETA, STATISTIC_WEIGHT = 2500.0, 1e4
GUIDANCE = 5.0


@dataclasses.dataclass(frozen=True)
class Size:
    """Configs of the models in the words of diffusers and transformers, and how much is measured of them.

    `check`, `square` and `portrait` are pixels, width and height.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    clip: Mapping[str, Any]
    check: tuple[int, int]
    square: tuple[int, int]
    portrait: tuple[int, int]
    batches: tuple[int, ...]
    pairs: tuple[int, ...]
    images: int
    sampler_steps: int
    training_steps: int
    matrix: int
    attention_tokens: int
    # Timed calls of a program go on for at least so long.
    timed_seconds: float
    # torch.compile's backend.
    backend: str


_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}

FULL = Size(
    name="full",
    unet={"cross_attention_dim": 768, "sample_size": 64},
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    text_encoder=_TEXT | {"hidden_act": "quick_gelu", "vocab_size": 49408},
    clip=PICK_SCORE,
    check=(256, 256),
    square=(512, 512),
    portrait=(704, 1024),
    batches=(1, 8, 16),
    pairs=(4, 1, 8),
    images=8,
    sampler_steps=50,
    training_steps=100,
    matrix=8192,
    attention_tokens=4096,
    timed_seconds=1.0,
    backend="inductor",
)

_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

# For a rehearsal on a CPU: every row, with few programs to compile, which is what takes its time.
TINY = Size(
    name="tiny",
    unet={
        "block_out_channels": (16,),
        # The middle block has attention to itself and to the prompt.
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "sample_size": 8,
    },
    vae={
        "block_out_channels": (8,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    text_encoder=_TOWER | {"hidden_act": "quick_gelu", "vocab_size": 600},
    clip={
        "text_config": _TOWER
        | {"hidden_act": "gelu", "vocab_size": 600, "max_position_embeddings": 77, "eos_token_id": 599},
        "vision_config": _TOWER | {"hidden_act": "gelu", "image_size": 32, "patch_size": 8},
        "projection_dim": 16,
    },
    check=(8, 8),
    square=(8, 8),
    portrait=(8, 8),
    batches=(1, 2),
    pairs=(1,),
    images=1,
    sampler_steps=2,
    training_steps=3,
    matrix=64,
    attention_tokens=400,
    timed_seconds=0.0,
    backend="eager",
)


class Models:
    """The models of a size on this process's device, in either type, made at first use."""

    def __init__(self, size: Size):
        self.size = size
        self.configs = {
            "unet": size.unet,
            "vae": size.vae,
            "text_encoder": size.text_encoder,
            "scheduler": SCHEDULER,
        }
        # The arrays are gigabytes: each is made once.
        self.weights = functools.cache(self._weights)
        self._placed = functools.cache(self._place)

    @functools.cached_property
    def shapes(self) -> StableDiffusion:
        """Stable Diffusion with shapes for its parameters."""
        return StableDiffusion.of_configs(self.configs)

    def _weights(self, name: str) -> dict:
        """Parameters of "unet", "vae", "text_encoder" or "clip" as float32 arrays of the host."""
        if name == "clip":
            shapes = PickScore.without_weights(self.size.clip, PREPROCESSOR).parameters
            return random_weights(shapes) | {"logit_scale": np.float32(math.log(100))}
        return random_weights(by_file(self.shapes.parameters)[name])

    def _place(self, name: str, dtype: str) -> dict:
        compute = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype]
        return replicate(jax.tree.map(lambda leaf: leaf.astype(compute), self.weights(name)), data_mesh())

    def base(self, dtype: str, attention: str = "auto") -> StableDiffusion:
        """Stable Diffusion without its parameters, which `parameters` has."""
        model = StableDiffusion.of_configs(self.configs, dtype, attention)
        return dataclasses.replace(model, parameters={})

    def parameters(self, dtype: str, *names: str) -> dict[str, dict]:
        """Those of the networks so called in files, on the device."""
        trees = {name: self._placed(name, dtype) if name in names else {} for name in ("unet", "vae", "text_encoder")}
        return by_role(**trees)

    def scorer(self, dtype: str) -> PickScore:
        """PickScore without its parameters, which `scorer_parameters` has."""
        return PickScore.without_weights(self.size.clip, PREPROCESSOR, dtype)

    def scorer_parameters(self, dtype: str) -> dict:
        """PickScore's, on the device; the logarithm of its scale stays float32, as when it is loaded."""
        scale = replicate(self.weights("clip")["logit_scale"], data_mesh())
        return self._placed("clip", dtype) | {"logit_scale": scale}

    def adapter(self, trained: bool) -> dict:
        """A LoRA, fresh or as after some training, when both factors have gradients and the loss is no longer log 2."""
        random = np.random.default_rng(1)
        entries = {}
        for path, (inputs, outputs) in sorted(self.shapes.lora_targets.items()):
            down = random.standard_normal((inputs, RANK), np.float32) / RANK
            up = random.standard_normal((RANK, outputs), np.float32) * np.float32(4e-3 if trained else 0)
            entries[path] = {"down": down, "up": up}
        return entries

    def latent_shape(self, pixels: tuple[int, int]) -> tuple[int, int, int]:
        """[height, width, channels] of an image's latents."""
        return self.shapes.latent_shape(*pixels)

    def inputs(self, count: int, pixels: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
        """Random latents, noise, states and token ids of so many images, and their timesteps."""
        random = np.random.default_rng(seed)
        shape, text = (count, *self.latent_shape(pixels)), self.size.text_encoder
        tokens = random.integers(0, text["vocab_size"] - 2, (count, 77)).astype(np.int32)
        # CLIP's embedding is the state at the end of a prompt, which has the largest id.
        tokens[:, -1] = text["vocab_size"] - 1
        return {
            "latents": random.standard_normal(shape, np.float32),
            "other_latents": random.standard_normal(shape, np.float32),
            "noise": random.standard_normal(shape, np.float32),
            "states": random.standard_normal((count, 77, text["hidden_size"]), np.float32),
            "empty_states": random.standard_normal((count, 77, text["hidden_size"]), np.float32),
            "tokens": tokens,
            "timesteps": random.integers(0, 1000, count).astype(np.int32),
        }


def random_weights(shapes: Any) -> dict:
    """Normal weights that keep activations near one, the same on every machine; gains near one and small shifts."""

    def draw(path, leaf):
        name = path[-1].key
        random = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        values = random.standard_normal(leaf.shape, np.float32)
        if leaf.ndim < 2:
            return np.float32(0.1) * values + np.float32(name == "scale")
        fan_in = leaf.shape[-1] if name == "embedding" else math.prod(leaf.shape[:-1])
        return values * np.float32(fan_in**-0.5)

    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return jax.tree.unflatten(structure, list(threads.map(lambda item: draw(*item), leaves)))


def relative_error(found: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what was expected."""
    found, expected = (np.ravel(np.asarray(x, np.float64)) for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def flat(tree: Any) -> np.ndarray:
    """All elements of a tree, in the order of its leaves."""
    return np.concatenate([np.ravel(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(tree)])


def on_device(tree: Any) -> Any:
    """Arrays of the host on the device."""
    return jax.tree.map(jnp.asarray, tree)
