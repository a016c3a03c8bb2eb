"""Every file in configs/ is what its name says, and the paper's experiments share one pool."""

import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.data.pool import blocks_of
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.experiment.drawing import drawing_settings
from hgdpo_jax.main import main

ROOT = Path(__file__).parent.parent

SCORERS = (
    "hps_v2:xswu/HPSv2/HPS_v2_compressed.pt",
    "image_reward:THUDM/ImageReward/ImageReward.pt",
    "aesthetic:trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
    "clip_score:openai/clip-vit-large-patch14",
)
SHARED = {"prompts.train_count": 100_000, "pool.block": 125, "evaluate.scorers": SCORERS}
DPO_ONLY = SHARED | {"dpo.statistic_weight": 0.0}
# What differs from base_config, whose values are the paper's.
EXPERIMENTS = {
    "n2": DPO_ONLY | {"pool.size": 2},
    "n5": DPO_ONLY | {"pool.size": 5},
    "n10": DPO_ONLY | {"pool.size": 10},
    "n20": DPO_ONLY,
    "n20_l2": DPO_ONLY | {"pairs.loser_rank": 2},
    "n20_l5": DPO_ONLY | {"pairs.loser_rank": 5},
    "n20_l10": DPO_ONLY | {"pairs.loser_rank": 10},
    "n20_2k": DPO_ONLY | {"prompts.train_count": 2_000},
    "n20_50k": DPO_ONLY | {"prompts.train_count": 50_000},
    "n20_beta4x": DPO_ONLY | {"dpo.beta": 10_000.0},
    "n20_beta20x": DPO_ONLY | {"dpo.beta": 50_000.0},
    "n20_lan": DPO_ONLY | {"sample.latent_normalization": True},
    "n20_sml": SHARED,
    "sft_winners": DPO_ONLY | {"objective": "sft"},
    "pilot": SHARED
    | {
        "prompts.train_count": 500,
        "pool.size": 8,
        "train.steps": 625,
        "train.warmup_steps": 50,
        "train.evaluate_every": 125,
    },
}
# The paper's own base, which its experiments start from.
BASES = {"finetune_base": {"stages": ("encode_images", "finetune_base")}}
# The toon experiments, whose names say what they make or how much of it.
TOON_STAGES = {
    "toon": base_config().stages,
    "toon_full": base_config().stages,
    "toon_smoke": base_config().stages,
    "toon_ablations": tuple(stage for stage in base_config().stages if stage != "sample_images"),
    "toon_base": ("train_autoencoder", "train_clip", "train_unet"),
    "toon_scorer": ("train_clip", "train_scorer"),
    "toon_judge": ("train_clip", "train_scorer"),
    "toon_oracle": ("train_oracle",),
}


def load(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


def flat(config: ConfigDict, prefix: str = "") -> dict:
    values: dict = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {f"{prefix}{name}": value}
    return values


def test_a_row_in_miniature_differs_from_the_others_as_its_paper_experiment_does():
    sml, beta, data = (
        flat(importlib.import_module("configs.toon_ablations").get_config(row))
        for row in ("n20_sml-0", "n20_beta4x-2", "n20_2k-0")
    )
    assert {field for field in sml if sml[field] != beta[field]} == {
        "name",
        "dpo.beta",
        "dpo.statistic_weight",
        "dpo.statistic_stride",
        "train.seed",
    }
    assert (sml["prompts.train_count"], data["prompts.train_count"], beta["train.seed"]) == (384, 8, 2)


@pytest.mark.parametrize("name", EXPERIMENTS | BASES)
def test_experiment_of_the_paper_differs_from_its_settings_as_its_name_says(name):
    config, base = load(name), flat(base_config())
    assert config.is_locked
    assert {field: value for field, value in flat(config).items() if value != base[field]} == (EXPERIMENTS | BASES)[
        name
    ]


@pytest.mark.parametrize("name", TOON_STAGES)
def test_toon_config_runs_the_stages_that_its_name_says(name):
    config = load(name)
    assert config.is_locked
    assert config.stages == TOON_STAGES[name]


def test_larger_toon_experiments_draw_more():
    images = [
        config.prompts.train_count * config.pool.size for config in map(load, ("toon_smoke", "toon", "toon_full"))
    ]
    assert images == sorted(images)


def test_experiments_of_the_paper_share_one_pool(tiny_base, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(100_000)))
    configs = {name: load(name) for name in EXPERIMENTS}
    for config in configs.values():
        config.weights.base, config.prompts.train = str(tiny_base), str(path)
    largest = configs["n20"]
    blocks = blocks_of(load_prompts(path), largest.pool.block)
    expected = drawing_settings(typed(largest))
    for config in configs.values():
        assert drawing_settings(typed(config)) == expected
        own = blocks_of(load_prompts(path, config.prompts.train_count), config.pool.block)
        # A prefix of its blocks, and of each block's images.
        assert own == blocks[: len(own)] and config.pool.size <= largest.pool.size


def test_a_run_without_weights_and_prompts_names_all_that_is_missing_and_a_plan_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    given = ["--config=configs/n2.py", f"--workdir={tmp_path}"]
    missing = "config.weights.base, config.prompts.train, config.weights.scorer, config.prompts.validation"
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {missing} are empty: set") and "--config.weights.base=SOURCE" in line
    assert main([*given, "--plan"]) == 0
    out = capsys.readouterr().out
    assert f"missing: {missing};" in out and "100,000 prompts x 2 images of 50 steps" in out
