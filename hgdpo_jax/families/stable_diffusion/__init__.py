"""Stable Diffusion 1.x: its networks, its conditioning, its files."""

from hgdpo_jax.families.stable_diffusion.model import StableDiffusion

FAMILY = StableDiffusion
load_adapter = StableDiffusion.lora_names.load_adapter
save_adapter = StableDiffusion.lora_names.save_adapter

__all__ = ["FAMILY", "StableDiffusion", "load_adapter", "save_adapter"]
