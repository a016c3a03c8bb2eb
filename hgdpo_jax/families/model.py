"""A text-to-image model of any family, which draws, encodes and decodes images, with adapters or without."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from hgdpo_jax.adapters import lora
from hgdpo_jax.arguments import images_of, latents_of, of_one_length, seeds_of, texts_of
from hgdpo_jax.batching import finite_rows, map_batches, map_distinct, replicated
from hgdpo_jax.diffusion import dpm_solver
from hgdpo_jax.diffusion.guidance import guidance_scale, guided
from hgdpo_jax.diffusion.latent_normalization import normalize
from hgdpo_jax.diffusion.schedule import predicted_noise
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.protocol import Adapters, Conditioning, Family
from hgdpo_jax.models.parameters import apply
from hgdpo_jax.sharding import data_mesh

ImageBatch = UInt8[np.ndarray, "n height width 3"]
Latents = Float[np.ndarray, "n h w c"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Model(Family):
    """A checkpoint with the operations that are the same for every family.

    The methods of the public interface take and return NumPy arrays of any number of rows. A single prompt, seed or
    image counts as a sequence of one, and an argument of one row is repeated for the rows of the others.
    """

    # Compiled programs, shared by copies of the model with other weights.
    programs: Any = None

    def __post_init__(self) -> None:
        if self.programs is None:
            object.__setattr__(self, "programs", _Programs(self))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.autoencoder.config.latent_channels

    # Pure functions

    def noise(
        self, parameters, latents, timesteps, conditioning: Conditioning, adapters: Adapters = ()
    ) -> Float[Array, "n h w c"]:
        """The noise that follows from `prediction`."""
        prediction = self.prediction(parameters, latents, timesteps, conditioning, adapters)
        return predicted_noise(self.schedule, prediction, latents, timesteps)

    def sample(
        self,
        parameters,
        initial_latents: Float[Array, "n h w c"],
        conditioning: Conditioning,
        negative_conditioning: Conditioning,
        adapters: Adapters,
        *,
        steps: int = 50,
        guidance: float | jax.Array | None = 5.0,
        latent_normalization: bool = False,
    ) -> Float[Array, "n h w c"]:
        """Scaled latents by DPM-Solver++ with classifier-free guidance away from `negative_conditioning`, if not None.

        With `latent_normalization` latents without adapters are drawn beside them, whose channel statistics they get
        after each step (HG-DPO, Eq. 7).
        """

        def predict(adapters: Adapters, latents, timestep):
            def conditioned(latents, conditioning):
                timesteps = jnp.full((latents.shape[0],), timestep)
                return self.prediction(parameters, latents, timesteps, conditioning, adapters)

            return guided(conditioned, latents, conditioning, negative_conditioning, guidance)

        if not latent_normalization:
            return dpm_solver.sample(functools.partial(predict, adapters), initial_latents, self.schedule, steps)

        # Stacked along an axis of their own, so that a sharded batch stays on its devices.
        def predict_both(latents, timestep):
            return jnp.stack([predict(adapters, latents[:, 0], timestep), predict((), latents[:, 1], timestep)], axis=1)

        def match_statistics(latents):
            return jnp.stack([normalize(latents[:, 0], latents[:, 1]), latents[:, 1]], axis=1)

        both = jnp.stack([initial_latents, initial_latents], axis=1)
        return dpm_solver.sample(predict_both, both, self.schedule, steps, match_statistics)[:, 0]

    def decode(self, parameters, latents: Float[Array, "n h w c"]) -> Float[Array, "n height width 3"]:
        """Scaled latents to images, float32, nominally from -1 (black) to 1 (white)."""
        unscaled = latents.astype(jnp.float32) / self.autoencoder.config.scaling_factor
        return apply(self.autoencoder, parameters["autoencoder"], unscaled, method="decode")

    def posterior(
        self, parameters, images: UInt8[Array, "n height width 3"]
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
        """Scaled mean and standard deviation of the images' latents, float32."""
        scaled = images.astype(jnp.float32) / 127.5 - 1.0
        mean, log_variance = apply(self.autoencoder, parameters["autoencoder"], scaled, method="encode")
        factor = self.autoencoder.config.scaling_factor
        return factor * mean, factor * jnp.exp(0.5 * log_variance)

    def decode_checked(
        self, parameters, latents: Float[Array, "n h w c"]
    ) -> tuple[UInt8[Array, "n height width 3"], Bool[Array, "n"]]:
        """Pixels, and whether all decoded values of each image were finite; in pixels, NaN is black."""
        images = self.decode(parameters, latents)
        return to_pixels(images), jnp.isfinite(images).all(axis=(1, 2, 3))

    def encode(self, parameters, images: UInt8[Array, "n height width 3"]) -> Float[Array, "n h w c"]:
        """Scaled mean of the posterior of the images' latents."""
        return self.posterior(parameters, images)[0]

    # The same checkpoint with other weights

    def with_parameters(self, **parameters: dict) -> Self:
        """The same networks with other weights, on the devices, in the roles given."""
        return dataclasses.replace(self, parameters={**self.parameters, **parameters})

    def with_denoiser(self, denoiser: dict) -> Self:
        """The same model with other weights in its denoiser."""
        return self.with_parameters(denoiser=replicated(denoiser))

    def with_adapter(self, adapter: lora.Adapter, scale: float = 1.0) -> Self:
        """The same model with an adapter merged into its weights; raises UserError where it does not fit.

        In bfloat16 the merged weights lose most of a small adapter: merge into a model loaded in float32.
        """
        text = self.parameters["text"]
        merged = lora.merge({**self.parameters["denoiser"], **text}, adapter, scale)
        return self.with_parameters(text={name: merged.pop(name) for name in text}).with_denoiser(merged)

    # Adapters

    def _check(self, adapters: Adapters) -> None:
        """Raises UserError where an entry of an adapter matches no layer."""
        for entry in adapters:
            if not isinstance(entry, tuple | list) or len(entry) != 2:
                raise UserError(
                    f"adapters contain a {type(entry).__name__}, expected pairs: for example [(adapter, 0.5)]"
                )
        for adapter, _ in adapters:
            lora.check(adapter, self.lora_layers)

    # Public interface

    def require_drawable(self, width: int, height: int, steps: int, clip_skip: int) -> None:
        """Raises UserError where this model cannot draw images of this size with these options."""
        self.latent_shape(width, height)
        dpm_solver.timesteps(self.schedule, steps)
        self.require_clip_skip(clip_skip)

    def conditioning_shapes(self, count: int) -> Conditioning:
        """Shapes of the conditioning of `count` prompts."""
        return jax.eval_shape(self.condition, self.parameters, self.token_shapes(count))

    def encode_prompts(
        self, prompts: str | Sequence[str], clip_skip: int = 0, device_batch: int = 16, adapters: Adapters = ()
    ) -> Conditioning:
        """The conditioning of prompts, each distinct one encoded once; `clip_skip` and `adapters` as in `condition`."""
        self._check(adapters)
        # Adapters that do not change the text encoders, as most, share one program.
        layers = lora.find_layers(self.parameters["text"]).keys()
        applied = tuple((adapter, scale) for adapter, scale in adapters if layers & adapter.keys())

        def encode(texts: list[str]) -> Conditioning:
            return map_batches(
                lambda tokens: self.programs.condition(self.parameters, tokens, clip_skip, applied),
                self.tokenize(texts),
                device_batch,
            )

        return map_distinct(encode, texts_of(prompts))

    def predict_noise(self, latents, timesteps, conditioning: Conditioning, adapters: Adapters = ()) -> Latents:
        """The noise that one call of the denoiser predicts; timesteps `[n]`."""
        self._check(adapters)
        latents, timesteps, conditioning = of_one_length(
            latents=latents_of(latents, self.latent_channels),
            timesteps=np.atleast_1d(timesteps),
            conditioning=conditioning,
        )
        return np.asarray(
            self.programs.noise(self.parameters, latents, jnp.asarray(timesteps), conditioning, tuple(adapters))
        )

    def encode_images(self, images: ImageBatch, device_batch: int = 16) -> Latents:
        """Scaled posterior means of the images' latents, float32; raises UserError where one is not finite."""
        latents = map_batches(functools.partial(self.programs.encode, self.parameters), images_of(images), device_batch)
        _require_finite(finite_rows(latents), "the autoencoder encodes to values that are not finite")
        return latents

    def decode_latents(self, latents: Latents, device_batch: int = 16) -> ImageBatch:
        """Pixels of scaled latents; raises UserError where latents or decoded values are not finite."""
        latents = latents_of(latents, self.latent_channels)
        _require_finite(finite_rows(latents), "the latents to decode are not finite")
        images, finite = self.decode_latents_checked(latents, device_batch)
        _require_finite(finite, "the autoencoder decodes to values that are not finite")
        return images

    def decode_latents_checked(
        self, latents: Latents, device_batch: int = 16
    ) -> tuple[ImageBatch, Bool[np.ndarray, " n"]]:
        """Pixels of scaled latents, and whether each image is usable, as in `decode_checked`."""
        return map_batches(functools.partial(self.programs.decode, self.parameters), latents, device_batch)

    def draw_latents(
        self,
        initial_latents: Latents,
        conditioning: Conditioning,
        negative_conditioning: Conditioning,
        adapters: Adapters = (),
        *,
        guidance: float = 5.0,
        device_batch: int = 8,
        report=None,
        **options: Any,
    ) -> Latents:
        """Scaled latents of one image per row, with options of `sample`; `report` gets the number of images done."""
        # Not a constant of the program: one serves all scales, of guidance as of adapters.
        scale = guidance_scale(guidance)
        return map_batches(
            lambda rows: self.programs.sample(self.parameters, *rows, tuple(adapters), guidance=scale, **options),
            (initial_latents, conditioning, negative_conditioning),
            device_batch,
            report,
        )

    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int],
        adapters: Adapters = (),
        *,
        negative_prompts: str | Sequence[str] | None = None,
        clip_skip: int = 0,
        width: int = 704,
        height: int = 1024,
        steps: int = 50,
        guidance: float = 5.0,
        initial_latents: Latents | None = None,
        latent_normalization: bool = False,
        device_batch: int = 8,
    ) -> ImageBatch:
        """One image per prompt and seed.

        One prompt with several seeds gives one image per seed; several prompts with one seed start from the same noise.

        Args:
          adapters: pairs of an adapter and its scale.
          negative_prompts: what guidance leads away from, one per prompt or one for all; by default the empty prompt.
          clip_skip: last layers of the text encoders that are skipped for `prompts`, but not for `negative_prompts`.
          initial_latents: the start instead of the seeds' noise; its size replaces `width` and `height`.
          latent_normalization: gives each image the channel statistics of that without adapters (HG-DPO, Eq. 7).
          device_batch: images drawn at once on each device.

        Raises:
          UserError: where the numbers of prompts, seeds, negative prompts and initial latents do not match, or the
            model cannot draw such images.
        """
        prompts = texts_of(prompts)
        if initial_latents is None:
            prompts, numbers = of_one_length(prompts=prompts, seeds=seeds_of(seeds))
            shape = self.latent_shape(width, height)
            initial_latents = np.stack([np.asarray(jax.random.normal(jax.random.key(seed), shape)) for seed in numbers])
        prompts, negative_prompts, initial_latents = of_one_length(
            prompts=prompts,
            negative_prompts=texts_of(negative_prompts or "", "negative_prompts"),
            initial_latents=latents_of(initial_latents, self.latent_channels, "initial_latents"),
        )
        # A small request is not padded to a full batch, unlike the parts of a pool, which share one program.
        device_batch = min(device_batch, -(-len(prompts) // data_mesh().size))
        latents = self.draw_latents(
            initial_latents,
            self.encode_prompts(prompts, clip_skip, adapters=adapters),
            # With all layers, as in diffusers, so that an adapter draws there as it was trained here.
            self.encode_prompts(negative_prompts, adapters=adapters),
            adapters,
            steps=steps,
            guidance=guidance,
            latent_normalization=latent_normalization,
            device_batch=device_batch,
        )
        return self.decode_latents(latents, device_batch)


def to_pixels(images: Float[Array, "n height width 3"]) -> UInt8[Array, "n height width 3"]:
    """Pixels of images nominally in [-1, 1]."""
    return jnp.round(jnp.clip(127.5 * (images + 1.0), 0.0, 255.0)).astype(jnp.uint8)


class _Programs:
    """The compiled pure functions of a model; they hold its networks, but not its weights."""

    def __init__(self, model: Model):
        # Without programs: a reference cycle would keep compiled code until a garbage collection.
        pure = dataclasses.replace(model, parameters={}, programs=())
        self.condition = jax.jit(pure.condition, static_argnames="clip_skip")
        self.noise = jax.jit(pure.noise)
        self.sample = jax.jit(pure.sample, static_argnames=("steps", "latent_normalization"))
        self.encode = jax.jit(pure.encode)
        self.decode = jax.jit(pure.decode_checked)


def _require_finite(finite: np.ndarray, what: str) -> None:
    if not finite.all():
        raise UserError(
            f"{what} for {np.count_nonzero(~finite):,} of {len(finite):,} images, first for image {np.argmin(finite)}: "
            'check the weights, or compute in dtype="float32"'
        )
