"""A family of another shape than Stable Diffusion: two text encoders, a pooled embedding, velocities, 8 channels."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hgdpo_jax.adapters import lora
from hgdpo_jax.arguments import texts_of
from hgdpo_jax.diffusion.schedule import NoiseSchedule
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.model import Model
from hgdpo_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from hgdpo_jax.models.clip import CLIPTextConfig, CLIPTextTransformer
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.sharding import data_mesh, replicate
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.clip_tokenizer import TOKENIZER_FILES, load_tokenizer, long_prompts, token_ids
from hgdpo_jax.weights.conversion import from_tree, to_tree
from second_family.lora_names import SecondNames
from second_family.unet import SecondUNet

CHANNELS, FACTOR = 8, 4
_LAYER = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 600}
ENCODERS = {
    "first": CLIPTextConfig(hidden_size=16, max_position_embeddings=77, **_LAYER),
    "second": CLIPTextConfig(hidden_size=24, max_position_embeddings=33, **_LAYER),
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SecondFamily(Model):
    """Tokens are ids by the encoders' names; conditioning are joined `states` and the `pooled` state of a prompt."""

    lora_names = SecondNames()

    unet: SecondUNet
    encoders: dict[str, CLIPTextTransformer]
    tokenizer: object = None

    @classmethod
    def load(cls, source, dtype="float32", *, attention="auto"):
        folder = epath.Path(source)
        model = cls.without_weights(source, dtype, attention=attention)
        place = functools.partial(replicate, mesh=data_mesh())
        parameters = to_tree(folders.read_weights(folder, "model"), model.parameters, str(folder), dtype, place)
        return dataclasses.replace(model, parameters=parameters, tokenizer=load_tokenizer(folder))

    @classmethod
    def without_weights(cls, source="", dtype="float32", *, attention="auto"):
        compute = jnp.dtype(dtype)
        config = AutoencoderConfig((8, 8, 8), 1, CHANNELS, norm_num_groups=4, scaling_factor=0.5)
        unet, autoencoder = SecondUNet(CHANNELS, compute, attention), Autoencoder(config, compute)
        encoders = {name: CLIPTextTransformer(config, compute) for name, config in ENCODERS.items()}
        latents, ids = jnp.zeros((1, 4, 4, CHANNELS)), jnp.zeros((1, 2), jnp.int32)
        states = jnp.zeros((1, 2, sum(config.hidden_size for config in ENCODERS.values())))
        pooled = jnp.zeros((1, ENCODERS["second"].hidden_size))
        shapes = {
            "denoiser": shapes_of(unet, latents, jnp.zeros(1, jnp.int32), states, pooled),
            "text": {name: shapes_of(encoder, ids) for name, encoder in encoders.items()},
            "autoencoder": shapes_of(autoencoder, jnp.zeros((1, 16, 16, 3)), latents),
        }
        return cls(
            unet=unet,
            autoencoder=autoencoder,
            encoders=encoders,
            schedule=NoiseSchedule.scaled_linear(
                0.001, 0.02, 500, prediction_type="v_prediction"
            ).with_zero_terminal_snr(),
            parameters=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, compute), shapes),
        )

    @classmethod
    def fingerprints(cls, source):
        return {"base": folders.content_fingerprint(epath.Path(source))}

    def save(self, folder, storage="float16"):
        folder = epath.Path(folder)
        folders.copy_files(self.tokenizer.name_or_path, folder, TOKENIZER_FILES)
        folders.write_weights(folder / "model.safetensors", from_tree(self.parameters), storage)

    def latent_shape(self, width, height):
        if width % (2 * FACTOR) or height % (2 * FACTOR):
            raise UserError(f"an image of {width}x{height} does not fit: give multiples of {2 * FACTOR} pixels")
        return height // FACTOR, width // FACTOR, CHANNELS

    def require_clip_skip(self, clip_skip):
        if clip_skip not in (0, 1):
            raise UserError(f"clip_skip is {clip_skip}, expected 0 or 1")

    @property
    def lora_targets(self):
        layers = lora.find_layers(self.parameters["denoiser"])
        return {path: widths for path, widths in layers.items() if re.search(r"attn[12]\.", path)}

    def computing_in(self, dtype):
        compute = jnp.dtype(dtype)
        return dataclasses.replace(
            self,
            unet=self.unet.clone(dtype=compute),
            autoencoder=self.autoencoder.clone(dtype=compute),
            encoders={name: encoder.clone(dtype=compute) for name, encoder in self.encoders.items()},
            programs=None,
        )

    def with_remat(self, remat):
        return dataclasses.replace(self, unet=self.unet.clone(remat=remat), programs=None)

    def tokenize(self, prompts):
        return {
            name: token_ids(self.tokenizer, texts_of(prompts), config.max_position_embeddings)
            for name, config in ENCODERS.items()
        }

    def token_shapes(self, count):
        return {
            name: jax.ShapeDtypeStruct((count, config.max_position_embeddings), jnp.int32)
            for name, config in ENCODERS.items()
        }

    def long_prompts(self, prompts):
        return long_prompts(
            self.tokenizer, prompts, min(config.max_position_embeddings for config in ENCODERS.values())
        )

    def condition(self, parameters, tokens, clip_skip=0, adapters=()):
        self.require_clip_skip(clip_skip)
        states = {}
        for name, encoder in self.encoders.items():
            with lora.apply([(lora.within(adapter, name), scale) for adapter, scale in adapters]):
                states[name] = apply(encoder, parameters["text"][name], tokens[name], clip_skip)
        ends = jnp.argmax(tokens["second"], axis=-1)
        pooled = jnp.take_along_axis(states["second"], ends[:, None, None], axis=1)[:, 0]
        # The shorter prompt ends in zeros.
        longest = max(state.shape[1] for state in states.values())
        padded = [jnp.pad(state, ((0, 0), (0, longest - state.shape[1]), (0, 0))) for state in states.values()]
        return {"states": jnp.concatenate(padded, axis=-1), "pooled": pooled}

    def prediction(self, parameters, latents, timesteps, conditioning, adapters=()):
        given = conditioning["states"], conditioning["pooled"]
        with lora.apply(adapters):
            return apply(self.unet, parameters["denoiser"], latents, timesteps, *given).astype(jnp.float32)


def write_checkpoint(folder, tokenizer, seed=0):
    """Writes a folder of random weights that keep activations near one."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = int(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 100
        values = random.normal(size=leaf.shape) / np.sqrt(fan_in)
        return (values + (path[-1].key == "scale")).astype(np.float32)

    model = SecondFamily.without_weights()
    parameters = jax.tree_util.tree_map_with_path(draw, model.parameters)
    dataclasses.replace(model, parameters=parameters, tokenizer=load_tokenizer(tokenizer)).save(folder, "float32")
