"""What a person can get wrong costs one line and exit status 2, before any work."""

import shutil
from pathlib import Path

import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.main import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def start(tmp_path, monkeypatch, capsys, tiny_base, tiny_scorer):
    """Starts the smoke experiment on tiny weights with changed arguments; returns status and the lines of stderr."""
    monkeypatch.chdir(ROOT)

    def run(*changes: str) -> tuple[int, list[str]]:
        given = dict(change.split("=", 1) for change in changes)
        arguments = {
            "--config": "configs/toon_smoke.py",
            "--workdir": str(tmp_path / "workdir"),
            "--stage": "generate_pool,score_pool,select_pairs",
            "--config.weights.base": str(tiny_base),
            "--config.weights.scorer": str(tiny_scorer),
        }
        status = main([f"{name}={value}" for name, value in (arguments | given).items()])
        return status, capsys.readouterr().err.strip().splitlines()

    return run


def assert_refused(result, *words):
    status, lines = result
    assert status == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and all(word in lines[0] for word in words), lines[0]


def copy_of(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_missing_weights_folder_is_named(start):
    assert_refused(start("--config.weights.base=nowhere"), "nowhere")


def test_missing_weights_file_is_named(start, tiny_scorer, tmp_path):
    folder = copy_of(tiny_scorer, tmp_path)
    (folder / "model.safetensors").unlink()
    assert_refused(start(f"--config.weights.scorer={folder}"), "model.safetensors")


def test_truncated_weights_are_found_before_any_image_is_drawn(start, tiny_scorer, tmp_path):
    folder = copy_of(tiny_scorer, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert_refused(start(f"--config.weights.scorer={folder}"), "model.safetensors")
    assert not (tmp_path / "workdir" / "pools").exists()


def test_weights_of_another_shape_are_refused(start, tiny_scorer, tmp_path):
    folder = copy_of(tiny_scorer, tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"projection_dim": 16', '"projection_dim": 24'))
    assert_refused(start(f"--config.weights.scorer={folder}"), "expected [24, 16]")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.pool.width=0", ("pool.width is 0, expected 1 to 16384",)),
        ("--config.pool.width=13", ("13x64 does not fit this model",)),
        ("--config.pool.steps=1000", ("1000 sampling steps, expected 1 to 999",)),
        ("--config.pool.clip_skip=9", ("clip_skip is 9, expected 0 to 1",)),
        ("--config.pool.guidance=nan", ("pool.guidance is nan, expected 0 to 100",)),
        ("--config.seed=-1", ("seed is -1, expected 0 to 4294967295",)),
        ("--config.train.learning_rate=-1", ("train.learning_rate is -1.0, expected 1e-12 to 1",)),
        ("--config.train.steps=99999999999", ("train.steps is 99999999999, expected 1 to 2147483647",)),
        ("--config.sweep.scales=0.5,1e999", ("sweep.scales is inf",)),
        ("--config.sweep.scales='a'", ("sweep.scales holds 'a', expected numbers",)),
        ("--config.evaluate.models=5", ("evaluate.models holds 5, expected text",)),
        ("--config.name=../other", ("name is '../other', expected the name of a folder",)),
        ("--workdir=README.md", ("workdir README.md is a file, expected a folder",)),
    ],
)
def test_what_no_image_can_be_drawn_with_is_refused_before_a_stage_is_started(start, tmp_path, change, words):
    assert_refused(start(change), *words)
    assert not (tmp_path / "workdir").exists() or not list((tmp_path / "workdir").glob("*/*"))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", None], ids=["empty", "list", "bytes", "folder"])
@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"])
def test_a_file_of_weights_that_is_none_is_refused_in_one_line(tiny_base, tmp_path, name, content):
    folder = copy_of(tiny_base, tmp_path)
    (folder / name).unlink()
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=str(folder)) as error:
        StableDiffusion.load(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.train.adam_bits=16", ("train.adam_bits is 16", "8 or 32")),
        # It would be no statistic matching at all.
        ("--config.dpo.statistic_stride=0", ("dpo.statistic_stride is 0", "at least 1")),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_any_image_is_drawn(start, tmp_path, change, words):
    assert_refused(start("--stage=generate_pool,score_pool,select_pairs,train_policy", change), *words)
    assert not (tmp_path / "workdir" / "pools").exists()
