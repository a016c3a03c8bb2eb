"""Reading a Stable Diffusion 1.5 from one file, and writing a LoRA."""

import functools
import tempfile
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.alternating import Benchmark, Prepared


def benchmarks(folder: Path) -> list[Benchmark]:
    file, tokenizer = checkpoints.single_file(folder), checkpoints.tokenizer(folder, words=49408)
    base = checkpoints.stable_diffusion(folder)
    return [
        Benchmark(
            "Loading a checkpoint of one file, float32",
            functools.partial(prepare_loading, file, tokenizer),
            functools.partial(prepare_diffusers_loading, file, base),
            "diffusers",
        ),
        Benchmark(
            "Writing a LoRA of rank 8 in diffusers' format",
            prepare_writing,
            functools.partial(prepare_diffusers_writing, base),
            "diffusers and PEFT",
        ),
    ]


def prepare_loading(file: Path, tokenizer: Path, way: str) -> Prepared:
    import jax

    from hgdpo_jax import StableDiffusion

    def call():
        jax.block_until_ready(StableDiffusion.load(str(file), tokenizer=str(tokenizer)).parameters)

    return [(call, 1.0)], "mapped"


def prepare_diffusers_loading(file: Path, base: Path, way: str) -> Prepared:
    import diffusers

    def call():
        pipeline = diffusers.StableDiffusionPipeline.from_single_file(
            str(file), config=str(base), safety_checker=None, local_files_only=True
        )
        # Its weights are views of the file, read when they are used: here, as ours are read while loading.
        for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            for parameter in model.parameters():
                parameter.sum()

    return [(call, 1.0)], "from_single_file, each weight read once"


def prepare_writing(way: str) -> Prepared:
    import jax
    import numpy as np

    from hgdpo_jax import StableDiffusion, save_adapter
    from hgdpo_jax.adapters import lora

    adapter = lora.initialize(jax.random.key(0), StableDiffusion.without_weights().lora_targets, rank=8)
    adapter = jax.tree.map(np.asarray, adapter)
    folder = tempfile.mkdtemp()

    def call():
        save_adapter(adapter, Path(folder) / "lora.safetensors")

    return [(call, 1.0)], "save_adapter"


def prepare_diffusers_writing(base: Path, way: str) -> Prepared:
    import diffusers
    import peft
    from peft.utils import get_peft_model_state_dict

    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet").requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    folder = tempfile.mkdtemp()

    def call():
        layers = diffusers.utils.convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)

    return [(call, 1.0)], "save_lora_weights"
