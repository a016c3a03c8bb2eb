"""A plan tells what a run would take, and refuses what the run would refuse."""

import math
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

import hgdpo_jax as hg
from hgdpo_jax import hosts
from hgdpo_jax.base_config import typed
from hgdpo_jax.config_files import load_config
from hgdpo_jax.experiment.rates import note_rate, rate_of
from hgdpo_jax.files import write_json
from hgdpo_jax.main import main
from hgdpo_jax.runner import load_stages, stage_run
from hgdpo_jax.weights.tensor_files import save_tensors


@pytest.fixture
def config(tiny_base, tiny_scorer):
    config = load_config("toon_smoke")
    config.weights.update(base=str(tiny_base), scorer=str(tiny_scorer))
    config.evaluate.scorers = ()
    return config


def by_name(plan):
    return {stage.name: stage for stage in plan.stages}


def test_a_plan_counts_images_and_bytes_and_says_how_the_images_are_drawn(config, tmp_path):
    plan = hg.plan(config, tmp_path)
    stages, prompts, size = by_name(plan), config.prompts.train_count, config.pool.size
    base = hg.StableDiffusion.without_weights(config.weights.base)
    latents = 2 * math.prod(base.latent_shape(config.pool.width, config.pool.height))
    assert stages["generate_pool"].images == stages["score_pool"].images == prompts * size
    assert stages["generate_pool"].stored == prompts * size * latents
    assert stages["select_pairs"].stored == 2 * prompts * latents
    assert stages["evaluate_policy"].images == 2 * config.prompts.test_count * config.evaluate.seeds
    assert f"{config.pool.steps} steps of DPM-Solver++" in plan.drawing and "spacing" in plan.drawing
    assert not list(tmp_path.iterdir())


def test_hours_are_those_of_the_rate_last_seen_else_of_preflight_else_unknown(config, tmp_path):
    workdir = epath.Path(tmp_path)
    assert by_name(hg.plan(config, tmp_path))["generate_pool"].hours is None
    examined = {"rows": 8, "roofline_seconds": 2.0}
    values = {
        "target": "a100-80gb",
        "devices": 4,
        "programs": {"generate_pool": examined},
        "total": {"device_hours": {"0.3": 1.0, "0.5": 0.6}},
    }
    write_json(workdir / "runs" / config.name / "preflight" / "preflight.json", values)
    plan, images = hg.plan(config, tmp_path), config.prompts.train_count * config.pool.size
    assert by_name(plan)["generate_pool"].hours == pytest.approx(images / (8 * 4 / (2.0 / 0.3)) / 3600)
    assert plan.sources == ["as preflight estimates for a100-80gb:4 at 30% of the roofline"]
    note_rate(typed(config), workdir, "generate_pool", 2.0)
    plan = hg.plan(config, tmp_path)
    assert by_name(plan)["generate_pool"].hours == pytest.approx(images / 2.0 / 3600)
    assert "as last seen with" in plan.sources[0]
    # Other steps take other times.
    config.pool.steps += 1
    assert "preflight" in hg.plan(config, tmp_path).sources[0]


@pytest.fixture
def planned(tmp_path, capsys, monkeypatch, tiny_base, tiny_scorer):
    """Plans the smoke experiment on tiny weights with changed arguments; returns status and the lines of stderr."""

    monkeypatch.setattr(hosts, "device_counts", lambda: (2, 2))

    def run(*changes: str) -> tuple[int, list[str]]:
        given = dict(change.split("=", 1) for change in changes)
        arguments = {
            "--config": "toon_smoke",
            "--workdir": str(tmp_path / "workdir"),
            "--config.weights.base": str(tiny_base),
            "--config.weights.scorer": str(tiny_scorer),
        }
        status = main([*(f"{name}={value}" for name, value in (arguments | given).items()), "--plan"])
        return status, capsys.readouterr().err.strip().splitlines()

    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("pool.steps=-3", "pool.steps is -3, expected at least 1"),
        ("adapter.rank=0", "adapter.rank is 0, expected 1 to 1024"),
        ("pairs.loser_rank=9", "pairs.loser_rank is 9, expected 2 to"),
        ("pool.width=101", "does not fit this model"),
        ("pool.size=1", "pool.size is 1, expected at least 2"),
        ("pool.clip_skip=9", "clip_skip is 9"),
        ("attention=flash", "attention is 'flash', expected"),
        ("train.learning_rate=0.0", "train.learning_rate is 0.0, expected 1e-12 to 1"),
        ("train.learning_rate=30.0", "train.learning_rate is 30.0, expected 1e-12 to 1"),
        ("pool.guidance=-1.0", "pool.guidance is -1.0, expected 0 to 100"),
        ("adapter.scale=50.0", "adapter.scale is 50.0, expected 0 to 4"),
        ("evaluate.models=('base','tuned@9')", "'tuned@9'"),
        ("name=a/b", "name is 'a/b'"),
        ("sample.name=a/b", "sample.name is 'a/b'"),
        ("train.batch_size=7", "train.batch_size is 7, expected a multiple of"),
        ("train.fsdp=5", "train.fsdp is 5, expected"),
        ("train.weight_decay=2.0", "train.weight_decay is 2.0, expected 0 to 1"),
        ("pool.unusable_limit=3.0", "pool.unusable_limit is 3.0, expected 0 to 1"),
        ("scoring.framing=stretch", "scoring.framing is 'stretch', expected"),
        ("pairs.latents=decoded", "pairs.latents is 'decoded', expected"),
        ("evaluate.models=('base',)", "evaluate.models is"),
        ("evaluate.models=('base','base')", "evaluate.models has"),
        ("evaluate.scorers=('nowhere:function',)", "nowhere"),
        ("evaluate.measures=('pick_score:x',)", "evaluate.measures has"),
        ("pairs.filter=nowhere:function", "pairs.filter"),
        ("dtype=float16", "dtype is 'float16'"),
        ("objective=kto", "objective is 'kto'"),
        ("stages=('generate_pool','score_pool','train_policy')", "train_policy reads select_pairs"),
        ("prompts.train=nowhere.txt", "nowhere.txt"),
        ("weights.tokenizer=nowhere", "nowhere"),
    ],
)
def test_what_the_run_would_refuse_the_plan_refuses_in_one_line(planned, tmp_path, change, words):
    status, lines = planned(f"--config.{change}")
    assert status == 2 and len(lines) == 1 and words in lines[0], lines
    assert not (tmp_path / "workdir").exists()


@pytest.mark.parametrize(
    ("setting", "given", "words"),
    [
        (
            "weights.base",
            "scorer",
            "is a CLIP such as PickScore, expected a whole checkpoint: name it in config.weights.scorer",
        ),
        ("weights.base", "lora", "is a LoRA, expected a whole checkpoint: name it in config.evaluate.models"),
        ("weights.base", "base/vae", "is a VAE, expected a whole checkpoint"),
        ("weights.base", "base/unet", "is a U-Net alone, expected a whole checkpoint"),
        ("weights.scorer", "base", "is a whole checkpoint, expected a CLIP such as PickScore"),
        ("weights.scorer", "lora", "is a LoRA, expected a CLIP such as PickScore"),
        ("weights.scorer", "scorer,processor=base/vae", "base/vae/preprocessor_config.json does not exist"),
        ("weights.vae", "scorer", "is a CLIP such as PickScore, expected a VAE"),
        ("weights.tokenizer", "base", "base holds no tokenizer"),
        ("evaluate.models", "scorer", "is a CLIP such as PickScore, expected a LoRA"),
        ("prompts.train", "base", "is a folder, expected a text file"),
    ],
)
def test_weights_in_each_others_place_are_told_apart(planned, tmp_path, tiny_base, tiny_scorer, setting, given, words):
    (tmp_path / "base").symlink_to(tiny_base)
    (tmp_path / "scorer").symlink_to(tiny_scorer)
    (tmp_path / "lora").mkdir()
    save_tensors(tmp_path / "lora" / "pytorch_lora_weights.safetensors", {"unet.mid.lora_A.weight": np.zeros((1, 1))})
    value = given.replace("base", f"{tmp_path}/base").replace("scorer", f"{tmp_path}/scorer")
    value = value.replace("lora", f"{tmp_path}/lora")
    status, lines = planned(f"--config.{setting}={('base', value) if setting == 'evaluate.models' else value}")
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: config.{setting}") and words in lines[0].replace(f"{tmp_path}/", ""), lines


def test_a_sample_with_a_name_or_prompts_of_its_own_stands_in_no_others_way(config, tmp_path):
    def folder(**changes) -> str:
        config.sample.update({"prompts": (), "name": "", "seeds": 4} | changes)
        return stage_run(typed(config), "sample_images", epath.Path(tmp_path)).folder.name

    plain = folder()
    assert plain == folder(seeds=5) == "sample_images"
    one, other = folder(prompts=("A man!",)), folder(prompts=("A man!", "a dog"))
    assert (
        one.startswith("sample_images-a-man-") and len({plain, one, other, folder(prompts=("A man!",), seeds=5)}) == 4
    )
    assert folder(prompts=("猫",)).startswith("sample_images-") and folder(name="mine", seeds=5) == "sample_images-mine"


def test_a_plan_of_some_stages_is_that_of_the_whole_experiment(config, tmp_path):
    whole = by_name(hg.plan(config, tmp_path))
    names = ("generate_pool", "score_pool", "select_pairs", "check_pairs")
    assert list(by_name(hg.plan(config, tmp_path, names)).values()) == [whole[name] for name in names]
    run = stage_run(typed(config), "evaluate_policy", epath.Path(tmp_path))
    (loaded,) = load_stages(typed(config), ["evaluate_policy"], epath.Path(tmp_path))
    loaded.run.start()
    loaded.run.finish()
    assert run.is_done() and by_name(hg.plan(config, tmp_path, ["evaluate_policy"]))["evaluate_policy"].state == "done"


def test_a_training_of_several_processes_has_one_rate_and_one_that_cannot_be_recorded_ends_no_run(
    config, tmp_path, monkeypatch
):
    experiment, workdir = typed(config), epath.Path(tmp_path)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    for index in (0, 1):
        monkeypatch.setattr(hosts, "index", lambda index=index: index)
        monkeypatch.setattr(hosts, "is_first", lambda index=index: index == 0)
        note_rate(experiment, workdir, "train_policy", 8.0)
        note_rate(experiment, workdir, "generate_pool", 3.0)
    assert rate_of(experiment, workdir, workdir, "train_policy").per_second == 8.0
    assert rate_of(experiment, workdir, workdir, "generate_pool").per_second == 6.0
    (tmp_path / "file").touch()
    note_rate(experiment, workdir / "file", "generate_pool", 3.0)


def test_a_plan_starts_no_devices_so_that_processes_can_still_be_joined(tiny_base, tiny_scorer, tmp_path):
    program = f"""if True:
        import hgdpo_jax as hg
        from jax._src import xla_bridge
        config = hg.load_config("toon")
        config.weights.update(base={str(tiny_base)!r}, scorer={str(tiny_scorer)!r})
        print(len(hg.plan(config, {str(tmp_path)!r}).stages), xla_bridge.backends_are_initialized())
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["8", "False"], done.stderr
