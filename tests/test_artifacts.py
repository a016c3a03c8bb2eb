"""Stages are done once, say what changed, and notice when a file of theirs did."""

import json
import re
import shutil

import pytest
from etils import epath

from hgdpo_jax import artifacts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.files import WEIGHTS
from hgdpo_jax.files import write_text
from hgdpo_jax.weights.folders import content_fingerprint


@pytest.fixture
def stage(tmp_path):
    def make(name="train_policy", experiment="toon", inputs=(), **settings):
        return StageRun(
            name, experiment, epath.Path(tmp_path), settings or {"seed": 0}, {run.name: run for run in inputs}
        )

    return make


def complete(run, **files):
    run.start()
    for name, content in (files or {"result": "x"}).items():
        (run.folder / name).write_text(content)
    run.finish()


def test_a_stage_is_done_only_after_it_finished(stage):
    run = stage()
    assert not run.is_started()
    run.start()
    assert run.is_started() and not run.is_done()
    run.finish()
    assert run.is_done()


def test_equal_settings_have_equal_fingerprints_whatever_their_order_and_kind_of_sequence(stage):
    assert stage(a=1, b=(1, 2)).fingerprint == stage(b=[1, 2], a=1).fingerprint


def test_a_fingerprint_depends_on_settings_name_and_inputs_but_not_on_experiment_and_place(stage, tmp_path):
    run = stage(seed=0)
    assert run.fingerprint == stage(experiment="other", seed=0).fingerprint
    others = [stage(seed=1), stage("score_pool", seed=0), stage(seed=0, inputs=[stage("generate_pool", steps=1)])]
    others.append(stage(seed=0, inputs=[stage("generate_pool", steps=2)]))
    assert len({run.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_unchanged_settings_are_no_change(stage):
    complete(stage(loss={"beta": 1.0}, sizes=(1, 2)))
    assert stage(loss={"beta": 1.0}, sizes=(1, 2)).changes() == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_setting_is_refused_with_its_old_and_new_value_and_what_to_type(stage, finished):
    before = stage(seed=0, loss={"beta": 2500.0, "kind": "dpo"})
    before.start()
    if finished:
        before.finish()
    now = stage(seed=0, loss={"beta": 10.0}, rank=8)
    with pytest.raises(UserError) as error:
        artifacts.refuse_changes([now])
    message = str(error.value)
    assert 'loss.beta 2500.0 -> 10.0, rank (none) -> 8, loss.kind "dpo" -> (none)' in message
    assert "seed" not in message
    assert f"rm -r {now.folder}" in message and "--config.name=" in message and "\n" not in message


def test_a_change_upstream_is_named_once_and_all_its_followers_are_refused(stage):
    def runs(steps):
        pool = stage("generate_pool", steps=steps)
        return [pool, stage("score_pool", inputs=[pool])]

    for run in runs(20):
        complete(run)
    with pytest.raises(UserError) as error:
        artifacts.refuse_changes(runs(30))
    assert str(error.value).count("steps 20 -> 30") == 1
    assert "made anew" not in str(error.value)
    assert all(str(run.folder) in str(error.value).split("rm -r")[1] for run in runs(30))


def test_a_stage_whose_input_was_made_anew_says_so(stage):
    complete(stage("score_pool", inputs=[stage("generate_pool", steps=20)]))
    assert stage("score_pool", inputs=[stage("generate_pool", steps=30)]).changes() == ["generate_pool made anew"]


def test_an_input_is_the_folder_of_the_earlier_stage(stage):
    pool = stage("generate_pool")
    complete(pool, latents="abc")
    assert (stage(inputs=[pool]).input("generate_pool") / "latents").read_text() == "abc"


def test_an_input_that_is_not_done_is_refused(stage):
    with pytest.raises(UserError, match="generate_pool is not done"):
        stage(inputs=[stage("generate_pool")]).input("generate_pool")


def test_an_input_that_was_not_declared_is_a_mistake_of_the_program(stage):
    with pytest.raises(KeyError, match="INPUTS"):
        stage().input("generate_pool")


def test_an_altered_or_missing_file_is_found_when_a_later_stage_reads_it(stage):
    pool = stage("generate_pool")
    pool.start()
    write_text(pool.folder / "part" / "latents", "abc")
    pool.finish()
    (pool.folder / "part" / "latents").write_text("abd")
    with pytest.raises(UserError, match=r"part/latents was altered or damaged .* delete .*generate_pool"):
        stage(inputs=[pool]).input("generate_pool")
    (pool.folder / "part" / "latents").unlink()
    with pytest.raises(UserError, match="part/latents is missing"):
        stage(inputs=[pool]).input("generate_pool")


def test_a_stage_that_names_the_files_it_needs_does_not_read_the_others(stage):
    pairs = stage("select_pairs")
    complete(pairs, statistics="abc", latents="abc")
    (pairs.folder / "latents").write_text("abd")
    reader = stage(inputs=[pairs])
    assert (reader.input("select_pairs", "statistics") / "statistics").read_text() == "abc"
    with pytest.raises(UserError, match="latents was altered"):
        reader.input("select_pairs", "statistics", "latents")
    with pytest.raises(UserError, match="scores is missing"):
        reader.input("select_pairs", "scores")


def test_checkpoints_may_change_after_a_stage_is_done(stage):
    pool = stage("generate_pool")
    pool.start()
    write_text(pool.folder / "checkpoints" / "7" / "state", "abc")
    pool.finish()
    (pool.folder / "checkpoints" / "7" / "state").unlink()
    pool.verify()


@pytest.mark.parametrize("content", ['{"fingerpr', '{"stage": "train_policy", "fingerqrint": ""}'])
def test_a_damaged_marker_is_one_clear_error(stage, content):
    run = stage()
    complete(run)
    (run.folder / "done.json").write_text(content)
    with pytest.raises(UserError, match="done.json is damaged .*: delete"):
        run.changes()


def test_starting_clears_what_a_killed_run_left_half_written(stage):
    run = stage()
    run.start()
    (run.folder / "deep").mkdir()
    (run.folder / "deep" / "latents.0123.partial").write_text("half")
    (run.folder / "deep" / "latents").write_text("whole")
    run.start()
    run.finish()
    assert list(json.loads((run.folder / "done.json").read_text())["files"]) == ["deep/latents"]
    assert [path.name for path in (run.folder / "deep").iterdir()] == ["latents"]


def test_an_input_that_is_read_no_longer_is_a_change(tmp_path):
    earlier = artifacts.StageRun("earlier", "test", epath.Path(tmp_path), {})
    complete(artifacts.StageRun("later", "test", epath.Path(tmp_path), {}, {"earlier": earlier}))
    assert artifacts.StageRun("later", "test", epath.Path(tmp_path), {}).changes() == ["earlier is read no longer"]


def test_changed_weights_are_named_by_source_and_file(stage, tiny_base, tmp_path):
    def now(folder):
        return stage(**{"weights.base": content_fingerprint(folder, WEIGHTS), "seed": 0})

    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    before = now(folder)
    complete(before)
    config = folder / "unet/config.json"
    config.write_text(config.read_text() + "\n")
    (change,) = now(folder).changes()
    assert re.fullmatch(
        rf'weights.base "{folder} \(\w{{8}}\)" -> "{folder} \(\w{{8}}\)" \(changed: unet/config.json\)', change
    )
    # As earlier versions wrote it.
    marker = before.folder / "done.json"
    written = json.loads(marker.read_text())
    assert written["fingerprint"] == before.fingerprint
    write_text(marker, json.dumps({name: value for name, value in written.items() if name != "contents"}))
    assert before.changes() == []
    assert now(folder).changes()[0].startswith("weights.base ")


def test_a_fingerprint_of_unknown_content_is_shown_by_its_first_digits(stage):
    complete(stage(**{"prompts.test": "0123456789abcdef"}))
    changes = stage(**{"prompts.test": "fedcba9876543210"}).changes()
    assert changes == ['prompts.test "content (01234567)" -> "content (fedcba98)"']
