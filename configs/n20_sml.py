"""N-20-SML, the paper's method HG-DPO: pools of 20 images, DPO with statistic matching (Eq. 9).

The root of the paper's experiments; weights and prompts are yours to give.
"""

from ml_collections import ConfigDict

from hgdpo_jax.base_config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.prompts.train_count = 100_000
    # The paper's, beside PickScore (Sec. 4); HPS by the weights of v2.0.
    config.evaluate.scorers = (
        "hps_v2:xswu/HPSv2/HPS_v2_compressed.pt",
        "image_reward:THUDM/ImageReward/ImageReward.pt",
        "aesthetic:trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        "clip_score:openai/clip-vit-large-patch14",
    )
    # Divides the prompt counts of all experiments, so that each finds its whole pool in the largest one's; batches of
    # 8 to 128 images leave three places of 128 empty.
    config.pool.block = 125
    return config
