"""The stages that look at pairs and at a trained adapter: what they draw, compare and write."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from runs_on_disk import rank_statistics

from hgdpo_jax import artifacts
from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.diffusion.sampling import Sampling
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.pair_check import read_check
from hgdpo_jax.evaluation.results import read_results
from hgdpo_jax.experiment.drawing import Drawing, images_of_all_hosts
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.files import write_bytes, write_json
from hgdpo_jax.pages.pictures import read_image, read_shown_pairs, webp_bytes
from hgdpo_jax.stages import check_pairs, evaluate_policy, inputs_of, sample_images, sweep_scale
from hgdpo_jax.toon.captions import prompts
from hgdpo_jax.weights import lora_files
from hgdpo_jax.weights.tensor_files import load_tensors, save_tensors

PAIRS = 5
RANKS = rank_statistics(ranks=2)


@pytest.fixture(scope="module")
def model(tiny_base):
    return StableDiffusion.load(tiny_base)


@pytest.fixture(scope="module")
def adapter(model):
    """An adapter that changes a lot."""
    fresh = lora.initialize(jax.random.key(0), model.lora_targets, rank=2)
    return {path: {"down": np.asarray(e["down"]), "up": np.ones_like(e["up"])} for path, e in fresh.items()}


@pytest.fixture(scope="module")
def config(tiny_base, tiny_scorer, tiny_judge):
    config = base_config()
    config.name, config.dtype = "test", "float32"
    config.weights.update(base=str(tiny_base), scorer=str(tiny_scorer))
    config.evaluate.scorers = (f"judge={tiny_judge}", "oracle=toon-oracle")
    config.prompts.update(train="toon:train", train_count=PAIRS, test="toon:test", test_count=3)
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

    def select(run):
        write_pairs(run.folder, random_pairs(model), model.latent_shape(48, 64))
        write_json(run.folder / "statistics.json", {"prompts": PAIRS, "pairs": PAIRS, "ranks": RANKS})

    done("select_pairs", select)
    log = "".join(json.dumps({"step": step, "loss": 0.7, "dpo_loss": 0.69}) + "\n" for step in (1, 2))
    done("train_policy", lambda run: (run.folder / "log.jsonl").write_text(log))
    done(
        "export_adapter",
        lambda run: StableDiffusion.lora_names.save_adapter(
            adapter, run.folder / lora_files.EXPORTED["diffusers"], metadata={"step": "2"}
        ),
    )
    for stage in (check_pairs, evaluate_policy, sample_images):
        name = stage.__name__.rpartition(".")[2]
        records = next(runs["select_pairs"].folder.glob("*array_record*"))
        content = records.read_bytes()
        if stage is evaluate_policy:
            # An evaluation takes the statistics of the pairs, which may be large, and does not read them.
            records.write_bytes(b"altered")
        inputs = inputs_of(stage, typed(config))
        done(name, lambda run, stage=stage: stage.run(typed(config), run), stage.settings(typed(config)), inputs)
        records.write_bytes(content)
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
    sampling = Sampling(2, 2.0, negative_prompt, clip_skip, width=48, height=64)
    drawings = [Drawing(model, sampling, seed=0, device_batch=4, adapters=[(adapter, np.float32(x))]) for x in (0, 1)]
    prompts, indices = np.repeat(texts, 2).tolist(), np.tile([0, 1], len(texts))
    return [images_of_all_hosts(drawing, prompts, indices)[0] for drawing in drawings]


def test_only_the_tuned_images_depend_on_the_adapter(model, adapter):
    base, tuned = draw(model, adapter, ["a woman", "a man"])
    zero = {path: entry | {"up": 0 * entry["up"]} for path, entry in adapter.items()}
    for unchanged in draw(model, zero, ["a woman", "a man"]):
        np.testing.assert_array_equal(base, unchanged)
    assert np.abs(base.astype(int) - tuned).mean() > 1


def test_a_prompts_images_do_not_depend_on_the_other_prompts(model, adapter):
    together, alone = draw(model, adapter, ["a woman", "a man"]), draw(model, adapter, ["a man"])
    for both, one in zip(together, alone, strict=True):
        np.testing.assert_array_equal(both[2:], one)


@pytest.mark.parametrize("change", [{"negative_prompt": "a beard"}, {"clip_skip": 1}])
def test_negative_prompt_and_clip_skip_hold_for_both_models(model, adapter, change):
    plain, changed = draw(model, adapter, ["a woman"]), draw(model, adapter, ["a woman"], **change)
    assert all((before != after).any() for before, after in zip(plain, changed, strict=True))


def test_pairs_are_checked_by_every_score_and_shown_from_the_furthest_to_the_least_apart(runs):
    check, (best, worst) = read_check(runs["check_pairs"].folder), read_shown_pairs(runs["check_pairs"].folder).values()
    assert check.pairs == check.scores["judge"].win_rate.prompts == PAIRS
    margins = [pair.scores[0]["scorer"] - pair.scores[1]["scorer"] for pair in [*best, *worst[::-1]]]
    assert margins == sorted(margins, reverse=True) and len(margins) == PAIRS
    assert check.margin == pytest.approx(np.mean(margins))
    oracle = [pair.scores[0]["oracle"] - pair.scores[1]["oracle"] for pair in [*best, *worst]]
    assert check.scores["oracle"].difference == pytest.approx(np.mean(oracle))
    assert best[0].images[0].shape == (64, 48, 3)


def test_the_report_compares_by_all_three_scores(runs):
    folder = runs["evaluate_policy"].folder / "report"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["prompts"] == 3
    assert set(summary["win_rate"]) == {"scorer", "judge", "oracle"}
    assert all(0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1 for rate in summary["win_rate"].values())
    assert summary["pairs"]["count"] == PAIRS
    assert "Johan Melin" in (folder / "index.html").read_text()
    assert {path.name for path in folder.iterdir()} >= {"index.html", "grid.png", "curves.png", "pairs.png"}


def test_the_page_says_which_step_was_exported_and_when_and_on_what_it_was_evaluated(runs):
    page = (runs["evaluate_policy"].folder / "report" / "index.html").read_text()
    made = runs["evaluate_policy"].made
    assert "marks step 2." in page and f"Evaluated {made['time']}" in page and made["devices"] in page
    assert f"JAX {jax.__version__}" in page


def test_a_page_has_the_pools_pictures_where_select_pairs_wrote_them_and_refuses_altered_ones(config, runs, tmp_path):
    workdir = epath.Path(shutil.copytree(runs["select_pairs"].workdir, tmp_path / "workdir"))
    inputs = {name: dataclasses.replace(run, workdir=workdir) for name, run in runs.items()}
    pairs, evaluation = inputs["select_pairs"], dataclasses.replace(inputs["evaluate_policy"], inputs=inputs)
    page = evaluation.folder / "report" / "index.html"
    assert "Pool images by rank" not in page.read_text(), "an earlier version's run"
    write_bytes(pairs.folder / "ranked/0-1.webp", webp_bytes(np.zeros((64, 48, 3), np.uint8), 64))
    shown = {"prompt": "someone", "ranks": [1], "scores": [2.5], "pictures": ["ranked/0-1.webp"]}
    write_json(pairs.folder / "ranked.json", [shown])
    pairs.finish()
    evaluate_policy.run(typed(config), evaluation)
    assert "Pool images by rank" in page.read_text() and "2.500" in page.read_text()
    (pairs.folder / "ranked/0-1.webp").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"ranked/0-1.webp was altered or damaged"):
        evaluate_policy.run(typed(config), evaluation)


def test_samples_are_named_by_prompt_and_image_and_listed(runs):
    folder = runs["sample_images"].folder
    names = [f"images/000-a-woman-smiling-{seed}-{model}.png" for seed in (0, 1) for model in ("base", "tuned")]
    assert [f"images/{path.name}" for path in sorted((folder / "images").iterdir())] == names
    (listed,) = json.loads((folder / "prompts.json").read_text())
    assert listed["prompt"] == "A woman, smiling!"
    assert [image[model] for image in listed["images"] for model in ("base", "tuned")] == names
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 2 * 48


@pytest.fixture(scope="module")
def several(config, adapter, runs, tmp_path_factory):
    """An evaluation of five models in the same workdir, and its results."""
    folder = epath.Path(tmp_path_factory.mktemp("several"))
    StableDiffusion.lora_names.save_adapter(adapter, folder / "other.safetensors")
    texts = prompts("test", 3)
    rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(texts * 2)]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for row in rows:
        Image.fromarray(np.full((128, 96, 3), 200, np.uint8)).save(folder / row["file_name"])
    other = config.copy_and_resolve_references()
    other.evaluate.models = (
        "base",
        "tuned",
        "tuned@1+lan",
        f"{folder / 'other.safetensors'}@0.5",
        f"theirs=folder:{folder}",
    )
    other = typed(other)
    inputs = {name: runs[name] for name in evaluate_policy.inputs(other)}
    run = artifacts.StageRun(
        "evaluate_policy", "several", runs["evaluate_policy"].workdir, evaluate_policy.settings(other), inputs
    )
    evaluate_policy.check(other)
    drawn = {path: os.stat(path).st_mtime_ns for path in run.pools.glob("*/*/*.safetensors")}
    run.start()
    evaluate_policy.run(other, run)
    run.finish()
    assert drawn and {path: os.stat(path).st_mtime_ns for path in drawn} == drawn, "the base was drawn again"
    return other, run, json.loads((run.folder / "results.json").read_text())


def test_every_model_is_measured_on_the_same_prompts_and_noise(several, runs):
    _, _, results = several
    models = results["models"]
    assert list(models) == ["base", "tuned", "tuned_1_lan", "other_0_5", "theirs"]
    alone = json.loads((runs["evaluate_policy"].folder / "results.json").read_text())
    for model in ("base", "tuned"):
        assert models[model]["scores"] == alone["models"][model]["scores"]
    # The same LoRA from another file, at the same weight.
    assert models["other_0_5"]["scores"] == models["tuned"]["scores"]
    assert models["tuned_1_lan"]["scores"] != models["tuned"]["scores"]
    assert results["settings"] == alone["settings"] and results["experiment"] == "several"
    grey = models["theirs"]
    assert grey["colors"]["saturation"] == 0 and grey["colors"]["value"] == pytest.approx(200 / 255)
    assert np.shape(grey["scores"]["judge"]) == (3, 2)
    # Its two images of a prompt are one picture.
    assert grey["diversity"] == pytest.approx(0, abs=1e-6) and models["base"]["diversity"] > 0


def test_the_first_prompts_pictures_of_every_model_are_kept_as_files_with_whose_work_they_show(several):
    _, run, _ = several
    results = read_results(run.folder)
    pictures = {name: [read_image(run.folder / file) for file in of.pictures] for name, of in results.models.items()}
    assert {np.shape(shown) for shown in pictures.values()} == {(3, 384, 288, 3)}
    assert np.abs(np.subtract(pictures["theirs"], 200.0)).max() < 3
    np.testing.assert_array_equal(pictures["other_0_5"], pictures["tuned"])
    assert (np.array(pictures["base"]) != pictures["tuned"]).any()
    assert "ToonHead" in results.attribution and results.attribution in (run.folder / "report/index.html").read_text()


def test_a_damaged_image_is_drawn_again_and_nothing_else(several, capsys):
    config, run, results = several
    path = sorted((run.folder / "drawn" / "tuned").glob("*/image-001.safetensors"))[0]
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    for scores in (run.folder / "drawn" / "tuned").glob("scores-*/*/image-001.safetensors"):
        scores.unlink()
    evaluate_policy.run(config, run)
    assert "was damaged and is made again" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert json.loads((run.folder / "results.json").read_text()) == results


def test_an_image_whose_latents_are_not_finite_is_left_out_of_the_evaluation(several, tmp_path, capsys):
    config, run, results = several
    again = dataclasses.replace(run, experiment="unusable")
    shutil.copytree(run.folder, again.folder)
    path = sorted((again.folder / "drawn" / "tuned").glob("*/image-001.safetensors"))[0]
    latents = np.array(load_tensors(path)[0]["latents"])
    latents[2, 0, 0, 0] = np.nan
    save_tensors(path, {"latents": latents})
    for measured in (again.folder / "drawn" / "tuned").glob("*/*/image-001.safetensors"):
        measured.unlink()
    evaluate_policy.run(config, again)
    found = json.loads((again.folder / "results.json").read_text())
    before, after = (values["models"]["tuned"] for values in (results, found))
    for name, scores in before["scores"].items():
        assert after["scores"][name] == [*scores[:2], [scores[2][0], None]]
    assert before["diversity"] != after["diversity"] and before["colors"] != after["colors"]
    assert {**results, "experiment": "unusable", "models": {**results["models"], "tuned": after}} == {
        **found,
        "experiment": "unusable",
    }
    printed = capsys.readouterr()
    assert "1 of 3 images are unusable, first image 1 of prompt" in printed.err
    assert "2 images each; 1 unusable images left out" in printed.out
    assert (again.folder / "report" / "index.html").is_file()


def test_a_model_without_any_usable_image_is_refused_in_one_line(several):
    config, run, _ = several
    again = dataclasses.replace(run, experiment="none_usable")
    shutil.copytree(run.folder / "drawn" / "tuned", again.folder / "drawn" / "tuned")
    for path in (again.folder / "drawn" / "tuned").glob("*/image-*.safetensors"):
        save_tensors(path, {"latents": np.full_like(load_tensors(path)[0]["latents"], np.nan)})
    for measured in (again.folder / "drawn" / "tuned").glob("*/*/image-*.safetensors"):
        measured.unlink()
    pool = dataclasses.replace(config.pool, unusable_limit=1.0)
    with pytest.raises(UserError, match="none of the 6 images of tuned is usable, their scorer are not finite: check"):
        evaluate_policy.run(dataclasses.replace(config, pool=pool), again)


def test_any_lora_is_evaluated_without_training_and_by_measures_of_ones_own(several, config, tmp_path, monkeypatch):
    (tmp_path / "own_measures.py").write_text(
        "def bright(images, prompts):\n    return images.mean(axis=(1, 2, 3)) > 127\n"
        "def level(images, prompts):\n    return images.mean(axis=(1, 2, 3))\n"
        "level.description = 'mean of all pixels'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (_, lora), other = several[0].evaluate.models[2:4], config.copy_and_resolve_references()
    other.stages = ("evaluate_policy",)
    other.evaluate.models = ("base", lora)
    # The judge's scores are there already.
    other.weights.scorer, other.evaluate.scorers = "", config.evaluate.scorers[:1]
    other.evaluate.measures = ("own_measures:bright", "grey=own_measures:level")
    other = typed(other)
    assert evaluate_policy.inputs(other) == ()
    evaluate_policy.check(other)
    run = artifacts.StageRun("evaluate_policy", "alone", several[1].workdir, evaluate_policy.settings(other))
    run.start()
    evaluate_policy.run(other, run)

    results = read_results(run.folder)
    assert (results.training, results.ranks, results.pair_check) == ({}, None, None)
    assert {name: about.kind for name, about in results.measures.items()} == {"bright": "share", "grey": "mean"}
    base = results.models["base"].measures
    np.testing.assert_array_equal(base["bright"], base["grey"] > 127)
    summary = json.loads((run.folder / "report" / "summary.json").read_text())
    assert summary["measures"]["grey"]["base"]["mean"] == pytest.approx(base["grey"].mean())
    assert "pairs" not in summary and set(summary["win_rate"]) == {"judge"}
    page = (run.folder / "report" / "index.html").read_text()
    assert "mean of all pixels" in page and "The pairs it learned from" not in page


def test_a_pair_without_a_finite_score_is_left_out_of_the_check(config, runs, tmp_path, monkeypatch):
    (tmp_path / "odd_score.py").write_text(
        "import numpy as np\n"
        "def odd(images, prompts):\n"
        "    return np.where([prompt == prompts[1] and images.max() > 0 for prompt in prompts], np.nan, 1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    other = config.copy_and_resolve_references()
    other.evaluate.scorers = ("odd_score:odd",)
    check_run = dataclasses.replace(runs["check_pairs"], experiment="odd")
    check_pairs.run(typed(other), check_run)
    check, (best, worst) = read_check(check_run.folder), read_shown_pairs(check_run.folder).values()
    assert check.pairs == len(best) + len(worst) == PAIRS - 1
    assert prompts("train", PAIRS)[1] not in {pair.prompt for pair in [*best, *worst]}


def test_an_unusable_sample_is_left_out_of_the_sheet(config, runs, monkeypatch, capsys):
    decode = StableDiffusion.decode_latents_checked

    def first_is_unusable(self, *arguments):
        images, usable = decode(self, *arguments)
        return images, np.arange(len(images)) > 0

    monkeypatch.setattr(StableDiffusion, "decode_latents_checked", first_is_unusable)
    run = dataclasses.replace(runs["sample_images"], experiment="unusable")
    sample_images.run(typed(config), run)
    (listed,) = json.loads((run.folder / "prompts.json").read_text())
    assert [image["base"][-10:] for image in listed["images"]] == ["1-base.png"]
    assert "warning: 2 of 4 images are unusable" in capsys.readouterr().err


def test_a_folder_without_an_image_of_a_prompt_is_refused_beforehand(config, tmp_path):
    Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "someone else"}) + "\n")
    other = config.copy_and_resolve_references()
    other.evaluate.models = ("base", f"folder:{tmp_path}")
    with pytest.raises(UserError, match="has 0 images of"):
        evaluate_policy.check(typed(other))


def test_a_sweep_begins_at_the_base_and_shows_every_scale(config, runs):
    other = config.copy_and_resolve_references()
    other.sweep.update(scales=(0.0, 0.5), prompts=2)
    other = typed(other)
    run = artifacts.StageRun(
        "sweep_scale",
        "test",
        runs["evaluate_policy"].workdir,
        sweep_scale.settings(other),
        {"export_adapter": runs["export_adapter"]},
    )
    run.start()
    sweep_scale.run(other, run)
    results = json.loads((run.folder / "results.json").read_text())
    base, zero, half = results["models"].values()
    # At scale 0 the images are the base's but for the last digit: ties, or nearly.
    assert zero["scores"]["oracle"] == base["scores"]["oracle"]
    assert zero["scores"]["scorer"] != half["scores"]["scorer"] and (zero["scale"], half["scale"]) == (0.0, 0.5)
    assert len(zero["pictures"]) == len(half["pictures"]) == 2
    with Image.open(run.folder / half["pictures"][1]) as image:
        assert image.size == (48, 64)
