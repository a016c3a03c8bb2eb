"""A Stable Diffusion 1.x checkpoint as one object."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Bool, Float, Int, UInt8

from hgdpo_jax.adapters import lora
from hgdpo_jax.arguments import images_of, latents_of, of_one_length, seeds_of, texts_of
from hgdpo_jax.batching import finite_rows, map_batches, on_devices
from hgdpo_jax.compute_types import require_compute_type
from hgdpo_jax.diffusion import dpm_solver
from hgdpo_jax.diffusion.guidance import guided
from hgdpo_jax.diffusion.latent_normalization import normalize
from hgdpo_jax.diffusion.schedule import NoiseSchedule, predicted_noise, unused_settings
from hgdpo_jax.errors import UserError, as_user_error
from hgdpo_jax.families.stable_diffusion.files import StableDiffusionFiles, read_checkpoint, write_folder
from hgdpo_jax.models.attention import IMPLEMENTATIONS
from hgdpo_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from hgdpo_jax.models.clip import CLIPTextConfig, CLIPTextTransformer
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.models.unet import UNet, UNetConfig
from hgdpo_jax.sharding import data_mesh, replicate
from hgdpo_jax.weights.clip_tokenizer import load_tokenizer
from hgdpo_jax.weights.conversion import from_tree, to_tree

Adapters = Sequence[tuple[dict, Any]]
ImageBatch = UInt8[np.ndarray, "n height width 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion:
    """Modules, parameters, noise schedule and tokenizer of a checkpoint, and the configs of its files.

    The pure functions (`text_states`, `prediction`, `noise`, `sample`, `decode`, `encode`, `posterior`) take the
    parameters and run inside jit; the methods of the public interface take and return numpy arrays of any number of
    rows. A single prompt, seed or image counts as a sequence of one, and what has one row is repeated for the rows of
    the other arguments.
    """

    unet: UNet
    autoencoder: Autoencoder
    text_encoder: CLIPTextTransformer
    schedule: NoiseSchedule
    tokenizer: Any
    parameters: dict[str, dict]
    configs: Mapping[str, Mapping[str, Any]]
    # What is compiled serves all weights of these networks.
    programs: Any = None
    # Raised where the same weights come to give other numbers.
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.programs is None:
            object.__setattr__(self, "programs", _Programs(self))

    @classmethod
    def load(
        cls,
        source: str,
        dtype: str = "float32",
        tokenizer: str = "",
        vae: str = "",
        attention: str = "auto",
    ) -> "StableDiffusion":
        """Reads a diffusers folder, a repository of the hub, one file, or what a plugin names; weights are in `dtype`.

        `tokenizer`, a folder, and `vae`, a diffusers folder or a file, replace the checkpoint's own; a single file has
        no tokenizer. `attention` is the U-Net's, as in `models/attention.py`. Raises UserError where something is
        missing, damaged, or of another architecture.
        """
        if attention not in IMPLEMENTATIONS:
            raise UserError(f"attention is {attention!r}, expected {' or '.join(map(repr, IMPLEMENTATIONS))}")
        require_compute_type(dtype)
        files = read_checkpoint(source, tokenizer, vae)
        if unused := unused_settings(files.configs["scheduler"]):
            _warn(f"the scheduler of {source} has {', '.join(unused)}: ignored, images are drawn by DPM-Solver++(2M)")
        with as_user_error(f"the configs of {source} describe no model that can be built"):
            model = cls.without_weights(files.configs, dtype, attention)
        words, vocabulary = load_tokenizer(files.tokenizer), model.text_encoder.config.vocab_size
        if tokenizer and len(words) != vocabulary:
            raise UserError(
                f"the tokenizer {tokenizer} has {len(words)} words, the text encoder {vocabulary}: "
                "give the one that the checkpoint was trained with"
            )
        # Tensor by tensor: the host never holds a second copy.
        place = functools.partial(replicate, mesh=data_mesh())
        parameters = {
            name: to_tree(
                files.tensors[name],
                template,
                where=f"the {name} of {vae if vae and name == 'vae' else source}",
                dtype=dtype,
                place=place,
            )
            for name, template in model.parameters.items()
        }
        return dataclasses.replace(model, tokenizer=words, parameters=parameters)

    @classmethod
    def without_weights(
        cls, configs: Mapping[str, Mapping[str, Any]], dtype: str = "float32", attention: str = "auto"
    ) -> "StableDiffusion":
        """The checkpoint of such configs with shapes in place of parameters, and no tokenizer."""
        compute = jnp.dtype(require_compute_type(dtype))
        unet = UNet(UNetConfig.from_dict(configs["unet"]), compute, attention)
        autoencoder = Autoencoder(AutoencoderConfig.from_dict(configs["vae"]), compute)
        text_encoder = CLIPTextTransformer(CLIPTextConfig.from_dict(configs["text_encoder"]), compute)
        shapes = parameter_shapes(unet, autoencoder, text_encoder)
        return cls(
            unet=unet,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            schedule=NoiseSchedule.from_dict(configs["scheduler"]),
            tokenizer=None,
            parameters=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, compute), shapes),
            configs=configs,
        )

    def computing_in(self, dtype: str) -> "StableDiffusion":
        """The same weights, in the type they have, with computations in another one: "float32" or "bfloat16"."""
        compute = jnp.dtype(require_compute_type(dtype))
        return dataclasses.replace(
            self,
            unet=self.unet.clone(dtype=compute),
            autoencoder=self.autoencoder.clone(dtype=compute),
            text_encoder=self.text_encoder.clone(dtype=compute),
            programs=None,
        )

    def with_parameters(self, **parameters: dict) -> "StableDiffusion":
        """The same networks with other weights in some of them, which lie on the devices."""
        return dataclasses.replace(self, parameters={**self.parameters, **parameters})

    def with_remat(self, remat: str) -> "StableDiffusion":
        """The same checkpoint whose U-Net makes things again for its gradient, as in `models/remat.py`."""
        return dataclasses.replace(self, unet=self.unet.clone(remat=remat), programs=None)

    def with_unet(self, unet: dict) -> "StableDiffusion":
        """The same checkpoint with other weights in its U-Net."""
        return self.with_parameters(unet=replicate(unet, data_mesh()))

    def with_adapter(self, adapter: lora.Adapter, scale: float = 1.0) -> "StableDiffusion":
        """The same checkpoint with an adapter merged into its weights; raises UserError where it does not fit.

        In bfloat16 the merged weights lose most of a small adapter: merge into a model loaded in float32.
        """
        unet, text = lora.split(adapter)
        text_encoder = lora.merge(self.parameters["text_encoder"], text, scale)
        return self.with_parameters(text_encoder=text_encoder).with_unet(
            lora.merge(self.parameters["unet"], unet, scale)
        )

    def save(self, folder: epath.PathLike, storage: str = "float16") -> None:
        """Writes a folder that diffusers and `load` read; `storage` is "float16" or "float32"."""
        files = StableDiffusionFiles(
            configs=self.configs,
            tensors={name: from_tree(tree, storage) for name, tree in self.parameters.items()},
            tokenizer=epath.Path(self.tokenizer.name_or_path),
        )
        write_folder(folder, files, storage)

    # Pure functions

    def text_states(
        self, parameters, token_ids: Int[Array, "n t"], clip_skip: int = 0, adapters: Adapters = ()
    ) -> Float[Array, "n t d"]:
        """States of the text encoder after its final norm, float32, without its last `clip_skip` layers.

        `adapters` add what they have for the text encoder. Raises UserError where no layer is left.
        """
        self._require_layers(clip_skip)
        with lora.apply([(lora.split(adapter)[1], scale) for adapter, scale in adapters]):
            return apply(self.text_encoder, parameters["text_encoder"], token_ids, clip_skip)

    def prediction(
        self, parameters, latents, timesteps, text_states, adapters: Adapters = ()
    ) -> Float[Array, "n h w c"]:
        """The U-Net's prediction in float32, with the adapters' low-rank branches added at their scales.

        It is noise or velocity, as the schedule's `prediction_type` says.
        """
        with lora.apply(adapters):
            return apply(self.unet, parameters["unet"], latents, timesteps, text_states).astype(jnp.float32)

    def noise(self, parameters, latents, timesteps, text_states, adapters: Adapters = ()) -> Float[Array, "n h w c"]:
        """The noise that follows from `prediction`."""
        prediction = self.prediction(parameters, latents, timesteps, text_states, adapters)
        return predicted_noise(self.schedule, prediction, latents, timesteps)

    def sample(
        self,
        parameters,
        initial_latents: Float[Array, "n h w c"],
        text_states: Float[Array, "n t d"],
        empty_states: Float[Array, "n t d"],
        adapters: Adapters,
        *,
        steps: int,
        guidance: float,
        latent_normalization: bool = False,
    ) -> Float[Array, "n h w c"]:
        """Latents by DPM-Solver++ with classifier-free guidance; with LAN beside the model without adapters (Eq. 7)."""

        def predict(latents, timestep, adapters):
            def conditioned(latents, states):
                timesteps = jnp.full((latents.shape[0],), timestep)
                return self.prediction(parameters, latents, timesteps, states, adapters)

            return guided(conditioned, latents, text_states, empty_states, guidance)

        if not latent_normalization:
            return dpm_solver.sample(
                lambda latents, timestep: predict(latents, timestep, adapters), initial_latents, self.schedule, steps
            )

        # Side by side along an axis of their own, so that a batch divided over devices stays where it is.
        def predict_both(latents, timestep):
            return jnp.stack([predict(latents[:, 0], timestep, adapters), predict(latents[:, 1], timestep, ())], axis=1)

        def match_statistics(latents):
            return jnp.stack([normalize(latents[:, 0], latents[:, 1]), latents[:, 1]], axis=1)

        both = jnp.stack([initial_latents, initial_latents], axis=1)
        return dpm_solver.sample(predict_both, both, self.schedule, steps, match_statistics)[:, 0]

    def decode(self, parameters, latents: Float[Array, "n h w c"]) -> UInt8[Array, "n height width 3"]:
        """Scaled latents to pixels."""
        return self.decode_checked(parameters, latents)[0]

    def decode_checked(
        self, parameters, latents: Float[Array, "n h w c"]
    ) -> tuple[UInt8[Array, "n height width 3"], Bool[Array, "n"]]:
        """Pixels, and of each image whether the VAE gave finite values: as whole numbers, NaN is black."""
        unscaled = latents.astype(jnp.float32) / self.autoencoder.config.scaling_factor
        images = apply(self.autoencoder, parameters["vae"], unscaled, method="decode")
        pixels = jnp.round(jnp.clip(127.5 * (images + 1.0), 0.0, 255.0)).astype(jnp.uint8)
        return pixels, jnp.isfinite(images).all(axis=(1, 2, 3))

    def encode(self, parameters, images: UInt8[Array, "n height width 3"]) -> Float[Array, "n h w c"]:
        """Pixels to the scaled mean of their latents' posterior."""
        return self.posterior(parameters, images)[0]

    def posterior(
        self, parameters, images: UInt8[Array, "n height width 3"]
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
        """Scaled mean and standard deviation of the images' latents, float32."""
        scaled = images.astype(jnp.float32) / 127.5 - 1.0
        mean, log_variance = apply(self.autoencoder, parameters["vae"], scaled, method="encode")
        factor = self.autoencoder.config.scaling_factor
        return factor * mean, factor * jnp.exp(0.5 * log_variance)

    # Public interface

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of one image's latents; raises UserError where the pixels do not divide evenly through every level."""
        factor = self.autoencoder.config.factor
        # Latents whose side the U-Net cannot halve at every level would not meet their skip connections.
        multiple = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if min(width, height) < 1 or width % multiple or height % multiple:
            raise UserError(
                f"an image of {width}x{height} does not fit this model: give multiples of {multiple} pixels"
            )
        return height // factor, width // factor, self.autoencoder.config.latent_channels

    def require_drawable(self, width: int, height: int, steps: int, clip_skip: int) -> None:
        """Raises UserError where this model draws no images of such a size, number of steps, or `clip_skip`."""
        self.latent_shape(width, height)
        dpm_solver.timesteps(self.schedule, steps)
        self._require_layers(clip_skip)

    def _require_layers(self, clip_skip: int) -> None:
        layers = self.text_encoder.config.num_hidden_layers
        if not 0 <= clip_skip < layers:
            raise UserError(
                f"clip_skip is {clip_skip}, expected 0 to {layers - 1}: the text encoder has {layers} layers"
            )

    def tokenize(self, prompts: str | Sequence[str]) -> Int[np.ndarray, "n t"]:
        """Token ids, cut and padded to the text encoder's length."""
        length = self.text_encoder.config.max_position_embeddings
        encoded = self.tokenizer(texts_of(prompts), padding="max_length", truncation=True, max_length=length)
        return np.asarray(encoded["input_ids"], np.int32)

    def encode_prompts(
        self, prompts: str | Sequence[str], clip_skip: int = 0, device_batch: int = 16, adapters: Adapters = ()
    ) -> Float[np.ndarray, "n t d"]:
        """Text states of the prompts, float32; `clip_skip` and `adapters` as in `text_states`."""
        self._check(adapters)
        ids = self.tokenize(prompts)
        # Most adapters have nothing for the text encoder, and then share its program.
        applied = tuple((adapter, scale) for adapter, scale in adapters if lora.split(adapter)[1])
        return map_batches(
            lambda rows: self.programs.text_states(
                self.parameters, on_devices(ids[rows]), clip_skip=clip_skip, adapters=applied
            ),
            len(ids),
            device_batch,
        )

    def predict_noise(self, latents, timesteps, text_states, adapters: Adapters = ()) -> Float[np.ndarray, "n h w c"]:
        """The noise that one call of the U-Net predicts; timesteps `[n]`."""
        self._check(adapters)
        latents, timesteps, text_states = of_one_length(
            latents=latents_of(latents, self.unet.config.in_channels),
            timesteps=np.atleast_1d(timesteps),
            text_states=text_states,
        )
        return np.asarray(
            self.programs.noise(self.parameters, latents, jnp.asarray(timesteps), text_states, tuple(adapters))
        )

    def encode_images(self, images: ImageBatch, device_batch: int = 16) -> Float[np.ndarray, "n h w c"]:
        """Scaled posterior means of the images' latents, float32; raises UserError where one is not finite."""
        images = images_of(images)
        latents = map_batches(
            lambda rows: self.programs.encode(self.parameters, on_devices(images[rows])), len(images), device_batch
        )
        _require_finite(finite_rows(latents), "the VAE's encoder gives values that are not finite for")
        return latents

    def decode_latents(self, latents: Float[np.ndarray, "n h w c"], device_batch: int = 16) -> ImageBatch:
        """Pixels of scaled latents; raises UserError where these, or what the VAE makes of them, are not finite."""
        latents = latents_of(latents, self.autoencoder.config.latent_channels)
        images, finite = self.decode_latents_checked(latents, device_batch)
        if not finite.all():
            _require_finite(finite_rows(latents), "the latents, before the VAE decodes them, are not finite for")
            _require_finite(finite, "the VAE's decoder gives values that are not finite for")
        return images

    def decode_latents_checked(
        self, latents: Float[np.ndarray, "n h w c"], device_batch: int = 16
    ) -> tuple[ImageBatch, Bool[np.ndarray, " n"]]:
        """Pixels of scaled latents, and of each image whether it can be used, as in `decode_checked`."""
        return map_batches(
            lambda rows: self.programs.decode(self.parameters, on_devices(latents[rows])), len(latents), device_batch
        )

    def generate_latents(
        self,
        prompts: str | Sequence[str],
        initial_latents: Float[np.ndarray, "n h w c"],
        adapters: Adapters = (),
        *,
        negative_prompts: str | Sequence[str] | None = None,
        clip_skip: int = 0,
        steps: int = 50,
        guidance: float = 5.0,
        latent_normalization: bool = False,
        device_batch: int = 8,
        report=None,
    ) -> Float[np.ndarray, "n h w c"]:
        """Scaled latents of one image a prompt, from the given start.

        Guidance leads away from `negative_prompts`, one a prompt; None: from the empty prompt. `clip_skip` layers of
        the text encoder are skipped for prompts, none for negative ones; `report` receives the number of images done.
        Raises UserError where the numbers of prompts, negative prompts and starts do not go together.
        """
        prompts, negative_prompts, initial_latents = of_one_length(
            prompts=texts_of(prompts),
            # No negative prompts are one that is empty.
            negative_prompts=texts_of(negative_prompts or "", "negative_prompts"),
            initial_latents=latents_of(initial_latents, self.autoencoder.config.latent_channels, "initial_latents"),
        )

        def encoded(texts: Sequence[str], clip_skip: int):
            distinct = list(dict.fromkeys(texts))
            states = self.encode_prompts(distinct, clip_skip, adapters=adapters)
            place = {text: i for i, text in enumerate(distinct)}
            rows = [place[text] for text in texts]
            # One text for all, as the empty prompt is, takes the memory of one.
            return states[rows] if len(distinct) > 1 else np.broadcast_to(states, (len(rows), *states.shape[1:]))

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

    def draw_latents(
        self,
        initial_latents: Float[np.ndarray, "n h w c"],
        text_states: Float[np.ndarray, "n t d"],
        negative_states: Float[np.ndarray, "n t d"],
        adapters: Adapters = (),
        *,
        steps: int = 50,
        guidance: float = 5.0,
        latent_normalization: bool = False,
        device_batch: int = 8,
        report=None,
    ) -> Float[np.ndarray, "n h w c"]:
        """`generate_latents` from the states of prompts and of negative prompts, for who has them already."""

        def run(rows):
            return self.programs.sample(
                self.parameters,
                on_devices(initial_latents[rows]),
                on_devices(text_states[rows]),
                on_devices(negative_states[rows]),
                tuple(adapters),
                steps=steps,
                guidance=guidance,
                latent_normalization=latent_normalization,
            )

        return map_batches(run, len(initial_latents), device_batch, report)

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
        initial_latents: Float[np.ndarray, "n h w c"] | None = None,
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

    def _check(self, adapters: Adapters) -> None:
        """Raises UserError where an adapter has an entry that would find no layer."""
        for entry in adapters:
            if not isinstance(entry, tuple | list) or len(entry) != 2:
                raise UserError("adapters are no pairs, expected [(adapter, scale), ...], for example [(adapter, 0.5)]")
        for adapter, _ in adapters:
            lora.check(adapter, self.lora_layers)

    @functools.cached_property
    def lora_layers(self) -> dict[str, tuple[int, int]]:
        """Path of every layer that an adapter may change, with its input and output width."""
        text = lora.find_layers(self.parameters["text_encoder"])
        unet = lora.find_layers(self.parameters["unet"])
        return unet | {lora.TEXT_ENCODER + path: widths for path, widths in text.items()}


class _Programs:
    """The pure functions of a model, compiled; they hold its networks and none of its weights."""

    def __init__(self, model: StableDiffusion):
        # Not these programs: a cycle would keep what is compiled until a garbage collection.
        pure = dataclasses.replace(model, parameters={}, programs=())
        self.text_states = jax.jit(pure.text_states, static_argnames="clip_skip")
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


# Every stage loads the base.
@functools.cache
def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def parameter_shapes(unet: UNet, autoencoder: Autoencoder, text_encoder: CLIPTextTransformer) -> dict[str, dict]:
    """Shapes of the parameters of the three networks, without making any."""
    latents = jnp.zeros((1, 16, 16, unet.config.in_channels))
    pixels = jnp.zeros((1, 8 * autoencoder.config.factor, 8 * autoencoder.config.factor, 3))
    small = jnp.zeros((1, 8, 8, autoencoder.config.latent_channels))
    states = jnp.zeros((1, 2, unet.config.cross_attention_dim))
    return {
        "unet": shapes_of(unet, latents, jnp.zeros((1,), jnp.int32), states),
        "vae": shapes_of(autoencoder, pixels, small),
        "text_encoder": shapes_of(text_encoder, jnp.zeros((1, 2), jnp.int32)),
    }
