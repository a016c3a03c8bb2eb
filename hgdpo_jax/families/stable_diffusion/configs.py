"""Stable Diffusion 1.5 in the words of its files' configs: the U-Net is as its class's defaults describe it."""

from collections.abc import Mapping
from typing import Any

from hgdpo_jax.models.autoencoder import AutoencoderConfig
from hgdpo_jax.models.clip import CLIPTextConfig

SCHEDULER: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
}
# What configs of VAEs and text encoders leave out has these values.
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
_TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "unet": {},
    "vae": _VAE,
    "text_encoder": _TEXT_ENCODER,
    "scheduler": SCHEDULER,
}


def autoencoder_config(values: Mapping[str, Any]) -> AutoencoderConfig:
    """A VAE's config.json as the network's config."""
    return AutoencoderConfig.from_dict({**_VAE, **values})


def text_config(values: Mapping[str, Any]) -> CLIPTextConfig:
    """A text encoder's config.json as the network's config; raises UserError for an unknown activation."""
    return CLIPTextConfig.from_dict({**_TEXT_ENCODER, **values})
