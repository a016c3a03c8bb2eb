"""One training step of HG-DPO on one pair at 256x256, Stable Diffusion 1.5 with a LoRA of rank 8, float32."""

import functools
from pathlib import Path

import numpy as np

from benchmarks import checkpoints
from benchmarks.alternating import Benchmark, Prepared, fastest, torch_ways

SIZE = 256
RANK = 8
BETA, STATISTIC_WEIGHT, LEARNING_RATE = 2500.0, 1e4, 1e-5


def benchmarks(folder: Path) -> list[Benchmark]:
    base = checkpoints.stable_diffusion(folder)
    return [
        Benchmark(
            f"DPO step, 1 pair {SIZE}x{SIZE}, statistic loss {where}",
            functools.partial(prepare_ours, base),
            functools.partial(prepare_peft, base, statistic_loss),
            "diffusers and PEFT",
        )
        for where, statistic_loss in (("on both sides", True), ("here alone", False))
    ]


def pair() -> dict[str, np.ndarray]:
    """Latents [1, h, w, 4] and token ids [1, 77]."""
    random = np.random.default_rng(0)
    names = ("winner_latents", "loser_latents")
    latents = {name: random.normal(size=(1, SIZE // 8, SIZE // 8, 4)).astype(np.float32) for name in names}
    return latents | {"tokens": random.integers(0, 600, (1, 77)).astype(np.int32)}


def prepare_ours(base: Path, way: str) -> Prepared:
    """The step that `train_policy` runs."""
    import jax

    from configs.n20_sml import get_config
    from hgdpo_jax import StableDiffusion
    from hgdpo_jax.base_config import typed
    from hgdpo_jax.experiment.training import make_training
    from hgdpo_jax.sharding import shard_batch, shard_parameters, training_mesh

    config = get_config()
    config.dtype = "float32"
    config.train.batch_size = config.train.device_batch = 1
    model = StableDiffusion.load(str(base))
    mesh = training_mesh(1, jax.devices())
    initial_state, step = make_training(typed(config), model, mesh)
    state = shard_parameters(initial_state(), mesh)
    frozen = shard_parameters({name: model.parameters[name] for name in ("denoiser", "text")}, mesh)
    del model
    batch = shard_batch((pair(), jax.random.key(0)), mesh)

    def call():
        nonlocal state
        state, scalars = step(state, frozen, *batch)
        jax.block_until_ready(scalars)

    return [(call, 1.0)], "jit"


def prepare_peft(base: Path, statistic_loss: bool, way: str) -> Prepared:
    """The step of diffusers' Diffusion-DPO example; the statistic loss by two more sampler calls, as the paper says."""
    import diffusers
    import peft
    import torch
    import transformers

    functional = torch.nn.functional
    text_encoder = transformers.CLIPTextModel.from_pretrained(base / "text_encoder").requires_grad_(False)
    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet").requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    scheduler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False)
    batch = {name: torch.from_numpy(array) for name, array in pair().items()}
    winner, loser = (batch[name].permute(0, 3, 1, 2).contiguous() for name in ("winner_latents", "loser_latents"))

    def make(memory_format: torch.memory_format, compiled: bool):
        unet.to(memory_format=memory_format)
        forward = torch.compile(unet) if compiled else unet

        def call():
            with torch.no_grad():
                states = text_encoder(batch["tokens"]).last_hidden_state
            noise = torch.randn(winner.shape).repeat(2, 1, 1, 1)
            timestep = int(torch.randint(0, 1000, ()))
            timesteps = torch.full((2,), timestep)
            noisy = scheduler.add_noise(torch.cat([winner, loser]), noise, timesteps).to(memory_format=memory_format)

            def difference():
                predicted = forward(noisy, timesteps, states.repeat(2, 1, 1)).sample
                errors = functional.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))
                return errors[0] - errors[1]

            def sampled():
                predicted = forward(noisy[:1], timesteps[:1], states).sample
                generator = torch.Generator().manual_seed(0)
                return scheduler.step(predicted, timestep, noisy[:1], generator=generator).prev_sample

            policy = difference()
            if statistic_loss:
                policy_sample = sampled()
            unet.disable_adapters()
            with torch.no_grad():
                reference = difference()
                if statistic_loss:
                    reference_sample = sampled()
            unet.enable_adapters()
            loss = -functional.logsigmoid(BETA * (reference - policy))
            if statistic_loss:
                shift = policy_sample.mean(dim=(2, 3)) - reference_sample.mean(dim=(2, 3))
                loss = loss + STATISTIC_WEIGHT * (shift**2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return call

    call, way = fastest(torch_ways(make), way)
    return [(call, 1.0)], way
