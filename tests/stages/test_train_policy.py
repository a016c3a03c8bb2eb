"""The best LoRA of a training run, in a file of its own."""

import contextlib

import jax
import numpy as np
import pytest

from hgdpo_jax import hosts
from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.validation import Validation
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.sharding import shard_parameters, training_mesh
from hgdpo_jax.training.best import BEST_FILE, best_adapter, has_best, keep_best, was_evaluated


def adapter(value):
    return {"mid_block.attentions.0.proj_in": {"down": np.full((4, 2), value), "up": np.full((2, 4), value)}}


def test_the_later_of_two_equally_good_steps_is_kept_also_when_the_run_goes_on_between_them(tmp_path):
    assert not has_best(tmp_path)
    for step, win_rate in ((6, 0.5), (12, 0.75), (18, 0.25), (24, 0.75), (30, 0.5)):
        keep_best(tmp_path, StableDiffusion, adapter(step), step, win_rate)
        assert has_best(tmp_path)
    kept, step = best_adapter(tmp_path, StableDiffusion)
    assert step == 24
    np.testing.assert_array_equal(kept["mid_block.attentions.0.proj_in"]["down"], 24)


@pytest.mark.parametrize("content", [lambda whole: whole[:-1], lambda whole: whole[:-1] + b"!"])
def test_a_damaged_file_is_not_taken_for_a_best(tmp_path, content):
    keep_best(tmp_path, StableDiffusion, adapter(1), 6, 0.5)
    path = tmp_path / BEST_FILE
    path.write_bytes(content(path.read_bytes()))
    assert not has_best(tmp_path)


def test_all_processes_go_by_what_the_first_one_finds_of_a_best(tmp_path, monkeypatch):
    keep_best(tmp_path, StableDiffusion, adapter(1), 6, 0.5)
    monkeypatch.setattr(hosts, "from_first", lambda own: not own)
    assert not has_best(tmp_path)
    assert has_best(tmp_path / "elsewhere")


def test_the_first_evaluated_step_counts_as_evaluated_only_after_its_evaluation(tmp_path):
    checkpoints, log = Checkpoints(tmp_path / "checkpoints"), RunLog(tmp_path)
    assert not was_evaluated(checkpoints, log, 6)
    checkpoints.save(6, {"w": np.zeros(2)})
    log.scalars(6, {"loss": 0.7})
    assert not was_evaluated(checkpoints, log, 6)
    log.scalars(6, {"validation_win_rate": 0.5})
    assert was_evaluated(checkpoints, log, 6)
    # Of step 8 nothing was evaluated, but it comes later.
    assert not was_evaluated(checkpoints, log, 8)
    checkpoints.save(9, {"w": np.zeros(2)})
    assert was_evaluated(checkpoints, log, 8)
    checkpoints.close()
    log.close()


def test_an_unusable_validation_image_has_no_score_and_many_stop_the_training(
    tiny_base, tiny_scorer, tmp_path, monkeypatch, capsys
):
    config = base_config()
    config.dtype, config.weights.scorer = "float32", str(tiny_scorer)
    config.prompts.update(validation="toon:validation", validation_count=4)
    config.pool.update(width=16, height=24, steps=1, guidance=1.0, device_batch=4)
    model, mesh = StableDiffusion.load(tiny_base), training_mesh()
    base = shard_parameters({name: model.parameters[name] for name in ("denoiser", "text")}, mesh)
    targets = model.lora_targets
    adapter = lora.initialize(jax.random.key(0), targets, 2)
    decode, unusable = StableDiffusion.decode_latents_checked, 1

    def first_are_unusable(self, *arguments):
        images, usable = decode(self, *arguments)
        return images, usable & (np.arange(len(images)) >= unusable)

    monkeypatch.setattr(StableDiffusion, "decode_latents_checked", first_are_unusable)
    # What is drawn makes no difference here.
    monkeypatch.setattr(StableDiffusion, "draw_latents", lambda self, noise, *_, **options: noise)
    with contextlib.closing(RunLog(tmp_path)) as log:
        validation = Validation(typed(config), model, base, mesh, log)
        assert np.isfinite(validation.draw(adapter, 0.5)["scores"]).tolist() == [False, True, True, True]
        assert "1 of 4 images are unusable" in capsys.readouterr().err
        unusable = 4
        with pytest.raises(UserError, match="the validation scores with the LoRA at 0.5 are not finite"):
            validation.draw(adapter, 0.5)
