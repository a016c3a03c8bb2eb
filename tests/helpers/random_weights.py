"""Stable Diffusion 1.5 and PickScore at their full size with random weights, as PyTorch's libraries write them."""

import json
import math
import shutil

from hgdpo_jax.families.stable_diffusion.configs import SCHEDULER
from hgdpo_jax.weights.clip_tokenizer import TOKENIZER_FILES

SD_UNET = {"cross_attention_dim": 768, "sample_size": 64}
SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
# The tests' tokenizer is a small one; its last word ends a prompt.
WORDS = {"bos_token_id": 598, "eos_token_id": 599, "pad_token_id": 599}
CLIP_L_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_H_VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}


def write_stable_diffusion(folder, tokenizer):
    """Writes a Stable Diffusion 1.5 in float32, 4.3 GB, with a copy of the tokenizer."""
    import diffusers
    import transformers

    text_config = transformers.CLIPTextConfig(**CLIP_L_TEXT, **WORDS, hidden_act="quick_gelu")
    models = {
        "unet": draw_weights(diffusers.UNet2DConditionModel(**SD_UNET), seed=1),
        "vae": draw_weights(diffusers.AutoencoderKL(**SD_VAE), seed=2),
        "text_encoder": draw_weights(transformers.CLIPTextModel(text_config), seed=3),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    copy_tokenizer(tokenizer, folder / "tokenizer")
    pipeline = diffusers.StableDiffusionPipeline(
        **models,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=diffusers.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # model_index.json.
    pipeline.save_config(folder)


def write_pick_score(folder, tokenizer):
    """Writes a PickScore, which is a CLIP ViT-H/14, in float32, 3.9 GB, with a copy of the tokenizer."""
    import transformers

    config = transformers.CLIPConfig(
        text_config={**CLIP_H_TEXT, **WORDS, "hidden_act": "gelu", "projection_dim": 1024},
        vision_config={**CLIP_H_VISION, "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024},
        projection_dim=1024,
        # What CLIP's training ends at, PickScore's too.
        logit_scale_init_value=math.log(100),
    )
    draw_weights(transformers.CLIPModel(config), seed=4).save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(source, target):
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target)


def draw_weights(module, seed):
    """Normal weights that keep activations near one. As PyTorch initialises them, much of the signal vanishes."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, math.prod(parameter.shape[1:]) ** -0.5)
            elif parameter.ndim == 1:
                # Gains and shifts: at 1 and 0 they hide mistakes.
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
    return module
