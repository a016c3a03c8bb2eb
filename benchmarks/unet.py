"""One call of Stable Diffusion 1.5's U-Net on two images, float32."""

import functools
from pathlib import Path

import numpy as np

from benchmarks import checkpoints
from benchmarks.alternating import Benchmark, Prepared, fastest, torch_ways

TIMESTEPS = [500, 37]


def benchmarks(folder: Path) -> list[Benchmark]:
    return [
        Benchmark(
            f"U-Net forward, 2 images {size}x{size}",
            functools.partial(prepare_ours, checkpoints.stable_diffusion(folder), size),
            functools.partial(prepare_diffusers, checkpoints.stable_diffusion(folder), size),
            "diffusers",
        )
        for size in (256, 512)
    ]


def inputs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents [2, h, w, 4] and text states [2, 77, 768]."""
    random = np.random.default_rng(0)
    latents = random.normal(size=(2, size // 8, size // 8, 4))
    return latents.astype(np.float32), random.normal(size=(2, 77, 768)).astype(np.float32)


def prepare_ours(base: Path, size: int, way: str) -> Prepared:
    from hgdpo_jax import StableDiffusion

    model = StableDiffusion.load(str(base)).with_parameters(text={}, autoencoder={})
    latents, states = inputs(size)
    return [(lambda: model.predict_noise(latents, TIMESTEPS, states), 1.0)], "jit"


def prepare_diffusers(base: Path, size: int, way: str) -> Prepared:
    import diffusers
    import torch

    latents, states = inputs(size)
    latents, states = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()), torch.from_numpy(states)
    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet").requires_grad_(False)

    def make(memory_format: torch.memory_format, compiled: bool):
        unet.to(memory_format=memory_format)
        forward = torch.compile(unet) if compiled else unet
        timesteps = torch.tensor(TIMESTEPS)
        example = latents.to(memory_format=memory_format)

        def call():
            with torch.no_grad():
                return forward(example, timesteps, states).sample

        return call

    call, way = fastest(torch_ways(make), way)
    return [(call, 1.0)], way
