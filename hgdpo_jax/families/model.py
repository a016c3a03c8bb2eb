"""A text-to-image model of any family: it draws images, encodes and decodes them, and takes adapters."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from hgdpo_jax.adapters import lora
from hgdpo_jax.arguments import images_of, latents_of, of_one_length, seeds_of, texts_of
from hgdpo_jax.batching import finite_rows, map_batches, on_devices, repeated, rows_of
from hgdpo_jax.diffusion import dpm_solver
from hgdpo_jax.diffusion.drawing import draw
from hgdpo_jax.diffusion.schedule import predicted_noise
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.protocol import Adapters, Conditioning, Family
from hgdpo_jax.sharding import data_mesh, replicate

ImageBatch = UInt8[np.ndarray, "n height width 3"]
Latents = Float[np.ndarray, "n h w c"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Model(Family):
    """A checkpoint that draws, encodes and decodes.

    The methods of the public interface take and return numpy arrays of any number of rows. A single prompt, seed or
    image counts as a sequence of one, and what has one row is repeated for the rows of the other arguments.
    """

    # What is compiled serves all weights of these networks.
    programs: Any = None

    def __post_init__(self) -> None:
        if self.programs is None:
            object.__setattr__(self, "programs", _Programs(self))

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
        steps: int,
        guidance: float,
        latent_normalization: bool = False,
    ) -> Float[Array, "n h w c"]:
        """Latents by DPM-Solver++ with classifier-free guidance; with LAN beside the model without adapters (Eq. 7)."""

        def denoiser(adapters):
            return lambda *inputs: self.prediction(parameters, *inputs, adapters=adapters)

        return draw(
            denoiser(adapters),
            initial_latents,
            conditioning,
            negative_conditioning,
            self.schedule,
            steps=steps,
            guidance=guidance,
            reference=denoiser(()) if latent_normalization else None,
        )

    def decode_checked(
        self, parameters, latents: Float[Array, "n h w c"]
    ) -> tuple[UInt8[Array, "n height width 3"], Bool[Array, "n"]]:
        """Pixels, and of each image whether the autoencoder gave finite values: as whole numbers, NaN is black."""
        images = self.decode(parameters, latents)
        return to_pixels(images), jnp.isfinite(images).all(axis=(1, 2, 3))

    def encode(self, parameters, images: UInt8[Array, "n height width 3"]) -> Float[Array, "n h w c"]:
        """Pixels to the scaled mean of their latents' posterior."""
        return self.posterior(parameters, images)[0]

    # The same checkpoint with other weights

    def with_parameters(self, **parameters: dict) -> Self:
        """The same networks with other weights in some of them, which lie on the devices."""
        return dataclasses.replace(self, parameters={**self.parameters, **parameters})

    def with_denoiser(self, denoiser: dict) -> Self:
        """The same checkpoint with other weights in its denoiser."""
        return self.with_parameters(denoiser=replicate(denoiser, data_mesh()))

    def with_adapter(self, adapter: lora.Adapter, scale: float = 1.0) -> Self:
        """The same checkpoint with an adapter merged into its weights; raises UserError where it does not fit.

        In bfloat16 the merged weights lose most of a small adapter: merge into a model loaded in float32.
        """
        text, denoiser = self._divided(adapter)
        merged = self.with_parameters(text=lora.merge(self.parameters["text"], text, scale))
        return merged.with_denoiser(lora.merge(self.parameters["denoiser"], denoiser, scale))

    # Adapters

    def _divided(self, adapter: lora.Adapter) -> tuple[dict, dict]:
        """What an adapter changes of the text encoders, and the rest."""
        layers = lora.find_layers(self.parameters["text"])
        text = {path: entry for path, entry in adapter.items() if path in layers}
        return text, {path: entry for path, entry in adapter.items() if path not in text}

    def _check(self, adapters: Adapters) -> None:
        """Raises UserError where an adapter has an entry that would find no layer."""
        for entry in adapters:
            if not isinstance(entry, tuple | list) or len(entry) != 2:
                raise UserError("adapters are no pairs, expected [(adapter, scale), ...], for example [(adapter, 0.5)]")
        for adapter, _ in adapters:
            lora.check(adapter, self.lora_layers)

    # Public interface

    def require_drawable(self, width: int, height: int, steps: int, clip_skip: int) -> None:
        """Raises UserError where this model draws no images of such a size, number of steps, or `clip_skip`."""
        self.latent_shape(width, height)
        dpm_solver.timesteps(self.schedule, steps)
        self.require_clip_skip(clip_skip)

    def conditioning_shapes(self, count: int) -> Conditioning:
        """Shapes of the conditioning of so many prompts."""
        return jax.eval_shape(self.condition, self.parameters, self.token_shapes(count))

    def encode_prompts(
        self, prompts: str | Sequence[str], clip_skip: int = 0, device_batch: int = 16, adapters: Adapters = ()
    ) -> Conditioning:
        """The conditioning of prompts; `clip_skip` and `adapters` as in `condition`."""
        self._check(adapters)
        given = texts_of(prompts)
        tokens = self.tokenize(given)
        # Most adapters have nothing for the text encoders, and then share their program.
        applied = tuple((adapter, scale) for adapter, scale in adapters if self._divided(adapter)[0])
        return map_batches(
            lambda rows: self.programs.condition(
                self.parameters, on_devices(rows_of(tokens, rows)), clip_skip=clip_skip, adapters=applied
            ),
            len(given),
            device_batch,
        )

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
        images = images_of(images)
        latents = map_batches(
            lambda rows: self.programs.encode(self.parameters, on_devices(images[rows])), len(images), device_batch
        )
        _require_finite(finite_rows(latents), "the VAE's encoder gives values that are not finite for")
        return latents

    def decode_latents(self, latents: Latents, device_batch: int = 16) -> ImageBatch:
        """Pixels of scaled latents; raises UserError where these, or what the VAE makes of them, are not finite."""
        latents = latents_of(latents, self.latent_channels)
        images, finite = self.decode_latents_checked(latents, device_batch)
        if not finite.all():
            _require_finite(finite_rows(latents), "the latents, before the VAE decodes them, are not finite for")
            _require_finite(finite, "the VAE's decoder gives values that are not finite for")
        return images

    def decode_latents_checked(
        self, latents: Latents, device_batch: int = 16
    ) -> tuple[ImageBatch, Bool[np.ndarray, " n"]]:
        """Pixels of scaled latents, and of each image whether it can be used, as in `decode_checked`."""
        return map_batches(
            lambda rows: self.programs.decode(self.parameters, on_devices(latents[rows])), len(latents), device_batch
        )

    def draw_latents(
        self,
        initial_latents: Latents,
        conditioning: Conditioning,
        negative_conditioning: Conditioning,
        adapters: Adapters = (),
        *,
        steps: int = 50,
        guidance: float = 5.0,
        latent_normalization: bool = False,
        device_batch: int = 8,
        report=None,
    ) -> Latents:
        """`generate_latents` from the conditioning of prompts and of negative prompts, for who has them already."""

        def run(rows):
            return self.programs.sample(
                self.parameters,
                on_devices(initial_latents[rows]),
                on_devices(rows_of(conditioning, rows)),
                on_devices(rows_of(negative_conditioning, rows)),
                tuple(adapters),
                steps=steps,
                guidance=guidance,
                latent_normalization=latent_normalization,
            )

        return map_batches(run, len(initial_latents), device_batch, report)

    def generate_latents(
        self,
        prompts: str | Sequence[str],
        initial_latents: Latents,
        adapters: Adapters = (),
        *,
        negative_prompts: str | Sequence[str] | None = None,
        clip_skip: int = 0,
        steps: int = 50,
        guidance: float = 5.0,
        latent_normalization: bool = False,
        device_batch: int = 8,
        report=None,
    ) -> Latents:
        """Scaled latents of one image a prompt, from the given start.

        Guidance leads away from `negative_prompts`, one a prompt; None: from the empty prompt. `clip_skip` layers of
        the text encoder are skipped for prompts, none for negative ones; `report` receives the number of images done.
        Raises UserError where the numbers of prompts, negative prompts and starts do not go together.
        """
        prompts, negative_prompts, initial_latents = of_one_length(
            prompts=texts_of(prompts),
            # No negative prompts are one that is empty.
            negative_prompts=texts_of(negative_prompts or "", "negative_prompts"),
            initial_latents=latents_of(initial_latents, self.latent_channels, "initial_latents"),
        )

        def encoded(texts: Sequence[str], clip_skip: int) -> Conditioning:
            distinct = list(dict.fromkeys(texts))
            conditioning = self.encode_prompts(distinct, clip_skip, adapters=adapters)
            if len(distinct) == 1:
                # One text for all, as the empty prompt is, takes the memory of one.
                return repeated(conditioning, len(texts))
            place = {text: i for i, text in enumerate(distinct)}
            return rows_of(conditioning, [place[text] for text in texts])

        return self.draw_latents(
            initial_latents,
            encoded(prompts, clip_skip),
            # All layers, as diffusers has it: an adapter should draw there as it was trained here.
            encoded(negative_prompts, 0),
            adapters,
            steps=steps,
            guidance=guidance,
            latent_normalization=latent_normalization,
            device_batch=device_batch,
            report=report,
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
        """One image a prompt and seed; `initial_latents`, where given, are the start instead of the seeds' noise.

        One prompt with several seeds gives an image a seed, several prompts with one seed start from the same noise.
        The other options are those of `generate_latents`.
        """
        prompts = texts_of(prompts)
        if initial_latents is None:
            prompts, numbers = of_one_length(prompts=prompts, seeds=seeds_of(seeds))
            shape = self.latent_shape(width, height)
            initial_latents = np.stack([np.asarray(jax.random.normal(jax.random.key(seed), shape)) for seed in numbers])
        # Nobody waits for the rest of a batch that is not full; a pool's parts do, to share one program.
        device_batch = min(device_batch, -(-len(prompts) // data_mesh().size))
        latents = self.generate_latents(
            prompts,
            initial_latents,
            adapters,
            negative_prompts=negative_prompts,
            clip_skip=clip_skip,
            steps=steps,
            guidance=guidance,
            latent_normalization=latent_normalization,
            device_batch=device_batch,
        )
        return self.decode_latents(latents, device_batch)


def to_pixels(images: Float[Array, "n height width 3"]) -> UInt8[Array, "n height width 3"]:
    """Images, nominally in [-1, 1], in whole numbers."""
    return jnp.round(jnp.clip(127.5 * (images + 1.0), 0.0, 255.0)).astype(jnp.uint8)


class _Programs:
    """The pure functions of a model, compiled; they hold its networks and none of its weights."""

    def __init__(self, model: Model):
        # Not these programs: a cycle would keep what is compiled until a garbage collection.
        pure = dataclasses.replace(model, parameters={}, programs=())
        self.condition = jax.jit(pure.condition, static_argnames="clip_skip")
        self.noise = jax.jit(pure.noise)
        self.sample = jax.jit(pure.sample, static_argnames=("steps", "guidance", "latent_normalization"))
        self.encode = jax.jit(pure.encode)
        self.decode = jax.jit(pure.decode_checked)


def _require_finite(finite: np.ndarray, what: str) -> None:
    if not finite.all():
        raise UserError(
            f"{what} {np.count_nonzero(~finite):,} of {len(finite):,} images, first for image {np.argmin(finite)}: "
            'check the weights, or compute in dtype="float32"'
        )
