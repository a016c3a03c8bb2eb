"""The toon checkpoint: autoencoder, text encoder, then U-Net, all from nothing, on procedural portraits."""

import dataclasses

from ml_collections import ConfigDict

from hgdpo_jax.base_config import base_config
from hgdpo_jax.toon.settings import AutoencoderTraining, CLIPTraining, Training, UNetTraining


def get_config() -> ConfigDict:
    config = base_config()
    config.stages = ("train_autoencoder", "train_clip", "train_unet")
    add(
        config,
        autoencoder=AutoencoderTraining(),
        clip=CLIPTraining(first_portrait=0, steps=800),
        base_training=UNetTraining(),
    )
    config.clip.text.update(hidden_size=128, intermediate_size=512, num_hidden_layers=3)
    return config


def add(config: ConfigDict, **sections: Training) -> None:
    """Adds the settings of stages that train toon weights."""
    with config.unlocked():
        config.update({name: dataclasses.asdict(section) for name, section in sections.items()})
