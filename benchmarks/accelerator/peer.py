"""PyTorch's models with the same weights, by diffusers, transformers and PEFT: what this project is compared with."""

import functools
import gc
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch

from benchmarks.accelerator.checks import CHECK_BETA, LEARNING_RATE, SAMPLER_STEPS, Bench, pair_batch, pixels_of
from benchmarks.accelerator.models import BETA, GUIDANCE, RANK, Models, flat
from benchmarks.accelerator.programs import timed
from benchmarks.accelerator.rows import Result, Row
from hgdpo_jax.preflight.published import PREPROCESSOR
from hgdpo_jax.weights.conversion import from_tree

functional = torch.nn.functional
# The wave of the rows with torch.compile.
COMPILED = 1
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Peer:
    """The models on the accelerator, or on the CPU where there is none."""

    def __init__(self, models: Models):
        self.models, self.size = models, models.size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # Turning gigabytes into PyTorch's layout takes seconds.
        self._tensors = functools.cache(self._convert)
        # Float32 means float32 here: TF32 has 10 bits of it.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def _convert(self, name: str) -> dict[str, torch.Tensor]:
        arrays = from_tree(self.models.weights(name))
        return {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}

    def _loaded(self, module: torch.nn.Module, name: str) -> torch.nn.Module:
        tensors = self._tensors(name)
        theirs = set(module.state_dict())
        if not theirs & set(tensors):
            # Before transformers 5 the text encoder's names have a prefix.
            tensors = {f"text_model.{key}": tensor for key, tensor in tensors.items()}
        tensors = {key: tensor.reshape(module.state_dict()[key].shape) for key, tensor in tensors.items()}
        left = module.load_state_dict(tensors, strict=False)
        missing = [key for key in left.missing_keys if not key.endswith("position_ids")]
        if missing or left.unexpected_keys:
            raise ValueError(f"{name}: PyTorch's model has {missing}, and not {left.unexpected_keys}")
        return module.requires_grad_(False).eval()

    def unet(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """diffusers' U-Net."""
        import diffusers

        with torch.device(self.device):
            module = diffusers.UNet2DConditionModel(**self.size.unet)
        return self._loaded(module, "unet").to(dtype)

    def autoencoder(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """diffusers' VAE."""
        import diffusers

        with torch.device(self.device):
            module = diffusers.AutoencoderKL(**self.size.vae, scaling_factor=0.18215)
        return self._loaded(module, "vae").to(dtype)

    def text_encoder(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """transformers' text encoder."""
        import transformers

        end = self.size.text_encoder["vocab_size"] - 1
        config = transformers.CLIPTextConfig(**self.size.text_encoder, eos_token_id=end, bos_token_id=end - 1)
        with torch.device(self.device):
            module = transformers.CLIPTextModel(config)
        return self._loaded(module, "text_encoder").to(dtype)

    def clip(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """transformers' CLIP."""
        import transformers

        text = self.size.clip["text_config"]
        end = text.get("vocab_size", 49408) - 1
        tower = {"projection_dim": self.size.clip["projection_dim"]}
        vision = {"patch_size": 14} | self.size.clip["vision_config"]
        config = transformers.CLIPConfig(
            text_config=text | tower | {"eos_token_id": end, "bos_token_id": end - 1},
            vision_config=vision | tower,
            **tower,
        )
        with torch.device(self.device):
            module = transformers.CLIPModel(config)
        return self._loaded(module, "clip").to(dtype)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array on the device; images and latents with their channels first."""
        array = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def policy(self, adapter: Any, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, dict]:
        """The U-Net with PEFT's LoRA of these factors, in float32, and those by the names they have here."""
        import peft

        unet = self.unet(dtype)
        unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_TARGETS))
        factors: dict[str, dict[str, torch.nn.Parameter]] = {}
        for name, parameter in unet.named_parameters():
            if not parameter.requires_grad:
                continue
            path, _, kind = name.removesuffix(".default.weight").rpartition(".lora_")
            part = {"A": "down", "B": "up"}[kind]
            parameter.data = torch.from_numpy(adapter[path][part].T.copy()).to(self.device)
            factors.setdefault(path, {})[part] = parameter
        return unet, factors

    @torch.no_grad()
    def subject(self, name: str) -> np.ndarray:
        """The result of one of the checks' subjects in float32, flat and channels last as here."""
        models, size = self.models, self.size
        given = models.inputs(2, size.check)
        latents = self.tensor(given["latents"])
        if name == "unet":
            timesteps, states = self.tensor(given["timesteps"]), self.tensor(given["states"])
            found = self.unet()(latents, timesteps, states).sample
        elif name == "vae decode":
            found = self.autoencoder().decode(latents).sample
        elif name == "vae encode":
            pixels = self.tensor(pixels_of(models)).float() / 127.5 - 1
            vae = self.autoencoder()
            found = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        elif name == "text encoder":
            found = self.text_encoder()(self.tensor(given["tokens"])).last_hidden_state
        elif name == "pickscore":
            found = self._pick_score(given["tokens"])
        elif name == "sampler":
            found = self._sample(models.inputs(1, size.check, seed=5))
        else:
            return self._gradient()
        return flat(found.permute(0, 2, 3, 1).cpu().numpy() if found.ndim == 4 else found.cpu().numpy())

    def _pick_score(self, token_ids: np.ndarray) -> torch.Tensor:
        clip = self.clip()
        edge = clip.config.vision_config.image_size
        pixels = np.random.default_rng(3).integers(0, 256, (2, edge, edge, 3)).astype(np.float32)
        mean, spread = (np.asarray(PREPROCESSOR[name], np.float32) for name in ("image_mean", "image_std"))
        images = self.tensor((pixels / 255 - mean) / spread)
        return clip(input_ids=self.tensor(token_ids), pixel_values=images).logits_per_image.diagonal()

    def _sample(self, given: dict[str, np.ndarray]) -> torch.Tensor:
        import diffusers

        from hgdpo_jax.families.stable_diffusion.configs import SCHEDULER

        unet, scheduler = self.unet(), diffusers.DPMSolverMultistepScheduler(**SCHEDULER)
        scheduler.set_timesteps(SAMPLER_STEPS)
        latents = self.tensor(given["latents"])
        states = torch.cat([self.tensor(given["empty_states"]), self.tensor(given["states"])])
        for timestep in scheduler.timesteps:
            empty, conditioned = unet(torch.cat([latents] * 2), timestep, states).sample.chunk(2)
            latents = scheduler.step(empty + GUIDANCE * (conditioned - empty), timestep, latents).prev_sample
        return latents

    @torch.enable_grad()
    def _gradient(self) -> np.ndarray:
        adapter = self.models.adapter(trained=True)
        unet, factors = self.policy(adapter)
        batch = pair_batch(self.models, 1, self.size.check)
        loss = self.dpo_loss(unet, unet, batch, self.text_encoder(), CHECK_BETA)
        order = [(path, part) for path in sorted(factors) for part in ("down", "up")]
        gradients = torch.autograd.grad(loss, [factors[path][part] for path, part in order])
        tree: dict[str, dict[str, np.ndarray]] = {}
        for (path, part), gradient in zip(order, gradients, strict=True):
            tree.setdefault(path, {})[part] = gradient.cpu().numpy().T
        return flat(tree)

    def dpo_loss(self, unet, forward, batch, text_encoder, beta: float = BETA) -> torch.Tensor:
        """The loss of diffusers' Diffusion-DPO example; `forward` is the U-Net or what torch.compile made of it."""
        import diffusers

        dtype = next(p.dtype for p in unet.parameters() if not p.requires_grad)
        scheduler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False)
        with torch.no_grad():
            states = text_encoder(self.tensor(batch["tokens"])).last_hidden_state.to(dtype).repeat(2, 1, 1)
        clean = torch.cat([self.tensor(batch["winner_latents"]), self.tensor(batch["loser_latents"])])
        noise, timesteps = self.tensor(batch["noise"]).repeat(2, 1, 1, 1), self.tensor(batch["timesteps"]).repeat(2)
        noisy = scheduler.add_noise(clean, noise, timesteps.long()).to(dtype, memory_format=torch.channels_last)

        def difference():
            with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
                predicted = forward(noisy, timesteps, states).sample
            errors = functional.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))
            winner, loser = errors.chunk(2)
            return winner - loser

        policy = difference()
        unet.disable_adapters()
        with torch.no_grad():
            reference = difference()
        unet.enable_adapters()
        return -functional.logsigmoid(beta * (reference - policy)).mean()

    def measured(self, call: Callable[[], Any], warm: int = 2) -> Result:
        """Timings of a call, and the most memory that it had."""

        def finished():
            call()
            if self.device == "cuda":
                torch.cuda.synchronize()

        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found = timed(finished, self.size.timed_seconds, warm)
        return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if self.device == "cuda" else {})


def _way(compiled: bool) -> str:
    return f"bfloat16, channels_last, SDPA, {'torch.compile' if compiled else 'eager'}"


def _time_unet(pixels: str, batch: int, compiled: bool, bench: Bench) -> Generator[None, None, Result]:
    yield
    peer = bench.peer
    unet = peer.unet(torch.bfloat16).to(memory_format=torch.channels_last)
    forward = torch.compile(unet, backend=bench.size.backend) if compiled else unet
    given = bench.models.inputs(batch, getattr(bench.size, pixels))
    latents = peer.tensor(given["latents"]).to(torch.bfloat16, memory_format=torch.channels_last)
    states, timesteps = peer.tensor(given["states"]).to(torch.bfloat16), peer.tensor(given["timesteps"])

    @torch.no_grad()
    def call():
        return forward(latents, timesteps, states).sample

    return peer.measured(call) | {"way": _way(compiled)}


def _time_step(pairs: int, compiled: bool, bench: Bench) -> Generator[None, None, Result]:
    yield
    peer = bench.peer
    unet, factors = peer.policy(bench.models.adapter(trained=False), torch.bfloat16)
    unet.to(memory_format=torch.channels_last)
    text_encoder = peer.text_encoder(torch.bfloat16)
    parameters = [factor for entry in factors.values() for factor in entry.values()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    batch = pair_batch(bench.models, pairs, bench.size.portrait)
    forward = torch.compile(unet, backend=bench.size.backend) if compiled else unet

    def call():
        optimizer.zero_grad()
        peer.dpo_loss(unet, forward, batch, text_encoder).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    way = _way(compiled)
    try:
        return peer.measured(call) | {"way": way}
    except torch.OutOfMemoryError:
        optimizer.zero_grad()
        unet.enable_gradient_checkpointing()
        return peer.measured(call) | {"way": f"{way}, gradient checkpointing, since it does not fit without"}


def _time_sampling(bench: Bench) -> Generator[None, None, Result]:
    """Guided sampling with decoding and scoring, as diffusers' pipeline does it."""
    yield
    import diffusers

    from hgdpo_jax.families.stable_diffusion.configs import SCHEDULER

    peer, size = bench.peer, bench.size
    bfloat16, last = torch.bfloat16, torch.channels_last
    unet, vae = (module.to(memory_format=last) for module in (peer.unet(bfloat16), peer.autoencoder(bfloat16)))
    clip = peer.clip(bfloat16)
    given = bench.models.inputs(size.images, size.portrait)
    states = torch.cat([peer.tensor(given["empty_states"]), peer.tensor(given["states"])]).to(bfloat16)
    edge = clip.config.vision_config.image_size
    scheduler = diffusers.DPMSolverMultistepScheduler(**SCHEDULER)
    tokens = peer.tensor(given["tokens"])

    @torch.no_grad()
    def call():
        scheduler.set_timesteps(size.sampler_steps, device=peer.device)
        latents = peer.tensor(given["latents"])
        for timestep in scheduler.timesteps:
            both = torch.cat([latents] * 2).to(bfloat16, memory_format=last)
            empty, conditioned = unet(both, timestep, states).sample.float().chunk(2)
            latents = scheduler.step(empty + GUIDANCE * (conditioned - empty), timestep, latents).prev_sample
        images = vae.decode((latents / vae.config.scaling_factor).to(bfloat16)).sample
        resized = functional.interpolate(images.float(), (edge, edge), mode="bicubic", antialias=True)
        return clip(input_ids=tokens, pixel_values=resized.to(bfloat16)).logits_per_image.diagonal().cpu()

    found = peer.measured(call, warm=0)
    return found | {"way": _way(False), "images_per_second": size.images / found["seconds"]}


def rows(size) -> list[Row]:
    """The peer's rows, named as ours with "peer: " before."""
    diffusers, peft = ("diffusers",), ("diffusers", "peft")
    steps = {4: 10.0, 1: 4.0, 8: 8.0}
    return [
        *(
            Row(f"peer: step, {n} pairs", "peer", 0, steps.get(n, 8.0), functools.partial(_time_step, n, False), peft)
            for n in size.pairs
        ),
        Row("peer: sampling", "peer", 0, 25.0, _time_sampling, diffusers),
        *(
            Row(f"peer: unet {pixels}, {n}", "peer", 0, 2.0, functools.partial(_time_unet, pixels, n, False), diffusers)
            for pixels in ("portrait", "square")
            for n in size.batches
        ),
        # Compiling is what takes the time: a process beside the checks has done it before.
        Row(
            f"peer: unet portrait, {size.batches[1]}, compiled",
            "peer",
            COMPILED,
            20.0,
            functools.partial(_time_unet, "portrait", size.batches[1], True),
            diffusers,
        ),
        Row(
            f"peer: step, {size.pairs[0]} pairs, compiled",
            "peer",
            COMPILED,
            30.0,
            functools.partial(_time_step, size.pairs[0], True),
            peft,
        ),
    ]
