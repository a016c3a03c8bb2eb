"""The stages that look at pairs and at a trained adapter: what they draw, compare and write."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from hgdpo_jax import artifacts
from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import base_config
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.evaluation.drawing import draw_base_and_tuned
from hgdpo_jax.pipelines.stable_diffusion import StableDiffusion
from hgdpo_jax.stages import check_pairs, evaluate_policy, sample_images
from hgdpo_jax.stages.export_adapter import FILES
from hgdpo_jax.toon.captions import prompts
from hgdpo_jax.weights import lora_files

PAIRS = 5


@pytest.fixture(scope="module")
def model(tiny_base):
    return StableDiffusion.load(tiny_base)


@pytest.fixture(scope="module")
def adapter(model):
    """An adapter that changes a lot."""
    fresh = lora.initialize(jax.random.key(0), lora.find_targets(model.parameters["unet"]), rank=2)
    return {path: {"down": np.asarray(e["down"]), "up": np.ones_like(e["up"])} for path, e in fresh.items()}


@pytest.fixture(scope="module")
def config(tiny_base, tiny_scorer, tiny_judge, tiny_oracle):
    config = base_config()
    config.name, config.dtype = "test", "float32"
    config.weights.update(base=str(tiny_base), scorer=str(tiny_scorer), judge=str(tiny_judge), oracle=str(tiny_oracle))
    config.prompts.update(test="toon:test", test_count=3)
    config.pool.update(width=48, height=64, steps=2, guidance=2.0, device_batch=4)
    config.scoring.device_batch = 4
    config.sample.seeds = config.evaluate.seeds = 2
    config.sample.prompts = ("A woman, smiling!",)
    return config


@pytest.fixture(scope="module")
def runs(config, adapter, model, tmp_path_factory):
    """The stages after pairs and adapter, all done, by name."""
    workdir, runs = epath.Path(tmp_path_factory.mktemp("workdir")), {}

    def done(name, write, settings=(), inputs=()):
        run = artifacts.StageRun(name, "test", workdir, dict(settings), {i: runs[i] for i in inputs})
        run.start()
        write(run)
        run.finish()
        runs[name] = run

    done("select_pairs", lambda run: write_pairs(run.folder, random_pairs(model), model.latent_shape(48, 64)))
    log = "".join(json.dumps({"step": step, "loss": 0.7, "dpo_loss": 0.69}) + "\n" for step in (1, 2))
    done("train_policy", lambda run: (run.folder / "log.jsonl").write_text(log))
    done("export_adapter", lambda run: lora_files.save_adapter(adapter, run.folder / FILES["diffusers"]))
    for stage in (check_pairs, evaluate_policy, sample_images):
        name = stage.__name__.rpartition(".")[2]
        done(name, lambda run, stage=stage: stage.run(config, run), stage.settings(config), stage.INPUTS)
    return runs


def random_pairs(model):
    random = np.random.default_rng(0)
    for index, prompt in enumerate(prompts("train", PAIRS)):
        winner, loser = random.normal(size=(2, *model.latent_shape(48, 64)))
        yield {
            "prompt": prompt,
            "winner_latents": winner.astype(np.float16),
            "loser_latents": loser.astype(np.float16),
            "winner_score": 1.0,
            "loser_score": 0.0,
            "winner_index": index,
            "loser_index": 0,
        }


def draw(model, adapter, texts, negative_prompt="", clip_skip=0):
    (drawn,) = draw_base_and_tuned(
        model,
        adapter,
        1.0,
        texts,
        2,
        seed=0,
        width=48,
        height=64,
        steps=2,
        guidance=2.0,
        negative_prompt=negative_prompt,
        clip_skip=clip_skip,
        latent_normalization=False,
        device_batch=4,
    )
    return drawn


def test_only_the_tuned_images_depend_on_the_adapter(model, adapter):
    drawn = draw(model, adapter, ["a woman", "a man"])
    unchanged = draw(
        model, {path: entry | {"up": 0 * entry["up"]} for path, entry in adapter.items()}, ["a woman", "a man"]
    )
    assert (drawn.prompts.tolist(), drawn.seeds.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
    np.testing.assert_array_equal(drawn.base, unchanged.base)
    np.testing.assert_array_equal(drawn.base, unchanged.tuned)
    assert np.abs(drawn.base.astype(int) - drawn.tuned).mean() > 1


def test_a_prompts_images_do_not_depend_on_the_other_prompts(model, adapter):
    together, alone = draw(model, adapter, ["a woman", "a man"]), draw(model, adapter, ["a man"])
    np.testing.assert_array_equal(together.base[2:], alone.base)
    np.testing.assert_array_equal(together.tuned[2:], alone.tuned)


@pytest.mark.parametrize("change", [{"negative_prompt": "a beard"}, {"clip_skip": 1}])
def test_negative_prompt_and_clip_skip_hold_for_both_models(model, adapter, change):
    plain, changed = draw(model, adapter, ["a woman"]), draw(model, adapter, ["a woman"], **change)
    assert (plain.base != changed.base).any() and (plain.tuned != changed.tuned).any()


def test_pairs_are_checked_by_every_score_and_shown_from_the_furthest_to_the_least_apart(runs):
    check, best, worst = check_pairs.read_check(runs["check_pairs"].folder)
    assert check.pairs == check.judge.prompts == PAIRS
    spreads = [pair.first_scores["scorer"] - pair.second_scores["scorer"] for pair in [*best, *worst[::-1]]]
    assert spreads == sorted(spreads, reverse=True) and len(spreads) == PAIRS
    assert check.spread == pytest.approx(np.mean(spreads))
    oracle = [pair.first_scores["oracle"] - pair.second_scores["oracle"] for pair in [*best, *worst]]
    assert check.oracle_points == pytest.approx(np.mean(oracle))
    assert best[0].first_image.shape == (64, 48, 3)


def test_the_report_compares_by_all_three_scores(runs):
    folder = runs["evaluate_policy"].folder / "report"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["prompts"] == 3
    assert set(summary["win_rate"]) == {"scorer", "judge", "oracle"}
    assert all(0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1 for rate in summary["win_rate"].values())
    assert summary["pairs"]["count"] == PAIRS
    assert "Johan Melin" in (folder / "index.html").read_text()
    assert {path.name for path in folder.iterdir()} >= {"index.html", "grid.png", "curves.png", "pairs.png"}


def test_samples_are_named_by_prompt_and_image_and_listed(runs):
    folder = runs["sample_images"].folder
    names = [f"images/000-a-woman-smiling-{seed}-{model}.png" for seed in (0, 1) for model in ("base", "tuned")]
    assert [f"images/{path.name}" for path in sorted((folder / "images").iterdir())] == names
    (listed,) = json.loads((folder / "prompts.json").read_text())
    assert listed["prompt"] == "A woman, smiling!"
    assert [image[model] for image in listed["images"] for model in ("base", "tuned")] == names
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 2 * 48
