"""The paper's supervised fine-tuning of a Stable Diffusion 1.5 base on captioned portraits (Sec. 2).

The base (weights.base) and the folder of images (finetune.images) are yours to give. The result, for weights.base of
the other experiments, is WORKDIR/runs/finetune_base/finetune_base/base.
"""

from ml_collections import ConfigDict

from hgdpo_jax.base_config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.stages = ("encode_images", "finetune_base")
    return config
