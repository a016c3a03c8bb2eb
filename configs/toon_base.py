"""The toon checkpoint: autoencoder, text encoder, then U-Net, all from nothing, on procedural portraits."""

from ml_collections import ConfigDict

from hgdpo_jax.base_config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.stages = ("train_autoencoder", "train_clip", "train_unet")
    with config.unlocked():
        config.autoencoder = ConfigDict(
            {
                "block_out_channels": (16, 32, 64),
                "layers_per_block": 1,
                # Of four channels at the first level: smaller groups take the colours' means with them.
                "norm_num_groups": 4,
                "images": 14_000,
                "batch_size": 16,
                "steps": 1800,
                "learning_rate": 1e-3,
                # Strong enough that latents are near a unit normal and a small error of the U-Net stays small in the
                # picture: with 1e-5 a tenth of the latents' spread in noise made a face unrecognisable.
                "divergence_weight": 2e-2,
                "save_every": 200,
            }
        )
        config.clip = clip_settings(first_portrait=0, steps=800)
        config.clip.text = ConfigDict(
            {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
        )
        config.base_training = ConfigDict(
            {
                "unet": {
                    "in_channels": 4,
                    "out_channels": 4,
                    "sample_size": 16,
                    "block_out_channels": (32, 64, 96),
                    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                    "layers_per_block": 1,
                    "attention_head_dim": 4,
                    # 32 groups on 32 channels would erase every channel's mean.
                    "norm_num_groups": 8,
                },
                "portraits": 20_000,
                "captions_per_portrait": 3,
                "batch_size": 32,
                # Short of its best on purpose: the method needs a model that can still get better.
                "steps": 4000,
                "learning_rate": 1e-3,
                # Errors at high noise, where the prompt decides what is drawn, count up to so many times as much.
                "noisy_weight_limit": 30.0,
                # Share of captions replaced by the empty prompt.
                "empty_captions": 0.1,
                "average_decay": 0.995,
                # Steps between the checkpoints that are kept for the scorers to see weaker models.
                "keep_every": 500,
                "save_every": 250,
            }
        )
    return config


def clip_settings(first_portrait: int, steps: int) -> ConfigDict:
    """Contrastive training of a small CLIP on portraits from `first_portrait` on."""
    return ConfigDict(
        {
            "first_portrait": first_portrait,
            "portraits": 16_000,
            "captions_per_portrait": 3,
            "vocabulary_size": 1200,
            "projection_dim": 96,
            "text": {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
            "vision": {
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 8,
            },
            "batch_size": 64,
            "steps": steps,
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "save_every": 200,
        }
    )
