"""A Stable Diffusion 1.x checkpoint as one object."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from hgdpo_jax.adapters import lora
from hgdpo_jax.arguments import texts_of
from hgdpo_jax.batching import replicated
from hgdpo_jax.compute_types import require_compute_type
from hgdpo_jax.diffusion.schedule import NoiseSchedule, unused_settings
from hgdpo_jax.diffusion.schedule_settings import UNCHANGED, ScheduleSettings
from hgdpo_jax.errors import UserError, as_user_error, warn
from hgdpo_jax.families.model import Model
from hgdpo_jax.families.protocol import Adapters
from hgdpo_jax.families.stable_diffusion import files
from hgdpo_jax.families.stable_diffusion.configs import PUBLISHED, autoencoder_config, text_config
from hgdpo_jax.families.stable_diffusion.lora_names import StableDiffusionNames
from hgdpo_jax.families.stable_diffusion.unet import UNet, UNetConfig
from hgdpo_jax.models.attention import IMPLEMENTATIONS
from hgdpo_jax.models.autoencoder import Autoencoder
from hgdpo_jax.models.clip import CLIPTextTransformer
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.weights.clip_tokenizer import LongPrompt, load_tokenizer, long_prompts, token_ids
from hgdpo_jax.weights.conversion import from_tree, to_tree

# The attention's projections.
_TARGET = re.compile(r"(^|\.)attn[12]\.to_(q|k|v|out\.0)$")
_TEXT_ENCODER = "text_encoder"
# Every stage loads the base.
_warn_once = functools.cache(warn)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion(Model):
    """U-Net, CLIP text encoder and autoencoder; tokens are token ids, conditioning is the text encoder's states."""

    lora_names = StableDiffusionNames()
    replaceable = ("tokenizer", "vae", "schedule")

    unet: UNet
    text_encoder: CLIPTextTransformer
    # As read from its files.
    configs: Mapping[str, Mapping[str, Any]]
    tokenizer: Any = None

    @classmethod
    def load(  # type: ignore[override]  # Names its replacements.
        cls,
        source: str,
        dtype: str = "float32",
        tokenizer: str = "",
        vae: str = "",
        attention: str = "auto",
        schedule: ScheduleSettings = UNCHANGED,
    ) -> Self:
        """Reads a diffusers folder, a repository of the hub, a single file, or a plugin's weights, in `dtype`.

        `tokenizer` (a folder), `vae` (a diffusers folder or a file) and what is set of `schedule` replace the
        checkpoint's own; a single file has no tokenizer. `attention` is that of the U-Net, as in `models/attention.py`.
        Raises UserError where something is missing, damaged, or of another architecture.
        """
        if attention not in IMPLEMENTATIONS:
            raise UserError(f"attention is {attention!r}, expected {' or '.join(map(repr, IMPLEMENTATIONS))}")
        require_compute_type(dtype)
        read = files.read_checkpoint(source, tokenizer, vae, schedule)
        if unused := unused_settings(read.configs["scheduler"]):
            _warn_once(
                f"the scheduler of {source} has {', '.join(unused)}: ignored, images are drawn by DPM-Solver++(2M)"
            )
        model = cls.of_configs(read.configs, dtype, attention, source)
        words, vocabulary = load_tokenizer(read.tokenizer), model.text_encoder.config.vocab_size
        if tokenizer and len(words) != vocabulary:
            raise UserError(
                f"the tokenizer {tokenizer} has {len(words)} words, the text encoder {vocabulary}: "
                "give the one that the checkpoint was trained with"
            )
        # Placed one by one, so that the host never holds a second copy of all tensors.
        trees = {
            name: to_tree(
                read.tensors[name],
                template,
                where=f"the {name} of {vae if vae and name == 'vae' else source}",
                dtype=dtype,
                place=replicated,
            )
            for name, template in by_file(model.parameters).items()
        }
        return dataclasses.replace(model, tokenizer=words, parameters=by_role(**trees))

    @classmethod
    def without_weights(
        cls,
        source: str = "",
        dtype: str = "float32",
        *,
        attention: str = "auto",
        vae: str = "",
        schedule: ScheduleSettings = UNCHANGED,
        **_: str,
    ) -> Self:
        """The model of a source, or SD1.5, from its configs alone."""
        if source:
            configs = files.read_configs(source, vae, schedule)
        else:
            configs = {**PUBLISHED, "scheduler": schedule.applied_to(PUBLISHED["scheduler"])}
        return cls.of_configs(configs, dtype, attention, source)

    @classmethod
    def of_configs(
        cls,
        configs: Mapping[str, Mapping[str, Any]],
        dtype: str = "float32",
        attention: str = "auto",
        source: str = "the model",
    ) -> Self:
        """The model that configs of unet, vae, text_encoder and scheduler describe, with shapes for parameters."""
        compute = jnp.dtype(require_compute_type(dtype))
        with as_user_error(f"the configs of {source} describe no model that can be built"):
            unet = UNet(UNetConfig.from_dict(configs["unet"]), compute, attention)
            autoencoder = Autoencoder(autoencoder_config(configs["vae"]), compute)
            text_encoder = CLIPTextTransformer(text_config(configs["text_encoder"]), compute)
            schedule = NoiseSchedule.from_dict(configs["scheduler"])
            ids, size = np.zeros((1, 2), np.int32), 8 * autoencoder.config.factor
            shapes = by_role(
                unet=shapes_of(
                    unet,
                    np.zeros((1, 16, 16, unet.config.in_channels)),
                    np.zeros((1,), np.int32),
                    np.zeros((1, 2, unet.config.cross_attention_dim)),
                ),
                vae=shapes_of(
                    autoencoder,
                    np.zeros((1, size, size, 3)),
                    np.zeros((1, 8, 8, autoencoder.config.latent_channels)),
                ),
                text_encoder=shapes_of(text_encoder, ids),
            )
        return cls(
            unet=unet,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            schedule=schedule,
            parameters=jax.tree.map(lambda leaf: leaf.update(dtype=compute), shapes),
            configs=configs,
        )

    @classmethod
    def fingerprints(cls, source: str, **replacements: Any) -> dict[str, str]:
        return files.fingerprints(source, **replacements)

    def save(self, folder: epath.PathLike, storage: str = "float16") -> None:
        """Writes a folder that diffusers and `load` read; `storage` is "float16" or "float32"."""
        if storage not in ("float16", "float32"):
            raise UserError(f"storage is {storage!r}, expected 'float16' or 'float32'")
        tensors = {name: from_tree(tree, storage) for name, tree in by_file(self.parameters).items()}
        tokenizer = epath.Path(self.tokenizer.name_or_path)
        files.write_folder(folder, files.StableDiffusionFiles(self.configs, tensors, tokenizer), storage)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        factor = self.autoencoder.config.factor
        # The U-Net halves the latents at every level; otherwise its skip connections would not match.
        multiple = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if min(width, height) < 1 or width % multiple or height % multiple:
            raise UserError(
                f"an image of {width}x{height} does not fit this model: give multiples of {multiple} pixels"
            )
        return height // factor, width // factor, self.latent_channels

    def require_clip_skip(self, clip_skip: int) -> None:
        layers = self.text_encoder.config.num_hidden_layers
        if not 0 <= clip_skip < layers:
            raise UserError(
                f"clip_skip is {clip_skip}, expected 0 to {layers - 1}: the text encoder has {layers} layers"
            )

    @property
    def lora_targets(self) -> dict[str, tuple[int, int]]:
        return targets_of(self.parameters["denoiser"])

    def computing_in(self, dtype: str) -> Self:
        compute = jnp.dtype(require_compute_type(dtype))
        return dataclasses.replace(
            self,
            unet=self.unet.clone(dtype=compute),
            autoencoder=self.autoencoder.clone(dtype=compute),
            text_encoder=self.text_encoder.clone(dtype=compute),
            programs=None,
        )

    def with_remat(self, remat: str) -> Self:
        return dataclasses.replace(self, unet=self.unet.clone(remat=remat), programs=None)

    def tokenize(self, prompts: str | Sequence[str]) -> Int[np.ndarray, "n t"]:
        """Token ids, cut and padded to the text encoder's length."""
        return token_ids(self.tokenizer, texts_of(prompts), self._tokens)

    def token_shapes(self, count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, self._tokens), jnp.int32)

    def long_prompts(self, prompts: Sequence[str]) -> list[LongPrompt]:
        return long_prompts(self.tokenizer, prompts, self._tokens)

    @property
    def _tokens(self) -> int:
        return self.text_encoder.config.max_position_embeddings

    def condition(
        self, parameters, tokens: Int[Array, "n t"], clip_skip: int = 0, adapters: Adapters = ()
    ) -> Float[Array, "n t d"]:
        """States of the text encoder after its final norm, float32."""
        self.require_clip_skip(clip_skip)
        with lora.apply([(lora.within(adapter, _TEXT_ENCODER), scale) for adapter, scale in adapters]):
            return apply(self.text_encoder, parameters["text"][_TEXT_ENCODER], tokens, clip_skip)

    def prediction(
        self, parameters, latents, timesteps, conditioning: Float[Array, "n t d"], adapters: Adapters = ()
    ) -> Float[Array, "n h w c"]:
        with lora.apply(adapters):
            return apply(self.unet, parameters["denoiser"], latents, timesteps, conditioning).astype(jnp.float32)


def targets_of(unet: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Path of every attention projection of a U-Net, with input and output width."""
    return {path: widths for path, widths in lora.find_layers(unet).items() if _TARGET.search(path)}


def by_role(unet: Any, vae: Any, text_encoder: Any) -> dict[str, Any]:
    """What files call by these names, under a model's roles."""
    return {"denoiser": unet, "text": {_TEXT_ENCODER: text_encoder}, "autoencoder": vae}


def by_file(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `by_role`."""
    return {
        "unet": parameters["denoiser"],
        "vae": parameters["autoencoder"],
        "text_encoder": parameters["text"][_TEXT_ENCODER],
    }
