"""Runs that are partly done are told from those that are evaluated."""

import json

import pytest
from runs_on_disk import make_results, write_run

from hgdpo_jax.errors import UserError
from hgdpo_jax.pages.joined.content import build
from hgdpo_jax.pages.joined.formats import as_markdown, as_page, as_plain_text
from hgdpo_jax.pages.joined.progress import evaluated_and_unfinished, read_progress
from hgdpo_jax.pages.joined.runs import read_runs


def begin(run, stage, *inputs, done=True, **settings):
    """Leaves the marker of a stage in a run's folder."""
    marker = {"fingerprint": "0", "settings": settings, "inputs": dict.fromkeys(inputs, "0"), "files": {}}
    (run / stage).mkdir(parents=True, exist_ok=True)
    (run / stage / ("done.json" if done else "started.json")).write_text(json.dumps(marker))


@pytest.fixture
def half(tmp_path):
    """A run that was killed while it trained, and while it wrote its log."""
    run = tmp_path / "work" / "runs" / "half"
    begin(run, "train_policy", "select_pairs", done=False, train={"steps": 600})
    (run / "train_policy" / "log.jsonl").write_text('{"step": 299, "loss": 0.7}\n{"step": 300, "loss": 0.7}\n{"step')
    begin(run, "score_pool", "generate_pool")
    begin(run, "select_pairs", "score_pool")
    begin(run, "generate_pool")
    return run


def test_a_runs_stages_come_in_the_order_in_which_they_read_each_other(half):
    progress = read_progress(half)
    assert progress.done == ["generate_pool", "score_pool", "select_pairs"]
    assert progress.unfinished == ["train_policy (300 of 600 steps)"]
    assert progress.missing == ["train_policy (300 of 600 steps)", "evaluate_policy"]


def test_a_run_that_is_not_evaluated_is_listed_with_what_it_lacks_in_all_formats(half, tmp_path):
    folders = [half, write_run(tmp_path, make_results("mine")), half]
    evaluated, unfinished = evaluated_and_unfinished(folders)
    assert [path.name for path in evaluated] == ["mine"] and [each.folder.name for each in unfinished] == ["half"]
    document = build(read_runs(evaluated), unfinished)
    assert "1 more run not evaluated yet" in document.subtitle
    for write in (as_page, as_plain_text, as_markdown):
        text = write(document).replace("\\", "")
        assert "half" in text and "train_policy (300 of 600 steps), evaluate_policy" in text


def test_results_of_an_evaluation_that_was_begun_again_are_not_taken_for_those_of_a_finished_one(tmp_path):
    run = write_run(tmp_path, make_results("mine"))
    begin(run, "evaluate_policy", done=False)
    assert not read_progress(run).is_evaluated and read_progress(run).missing == ["evaluate_policy"]
    begin(run, "evaluate_policy")
    assert read_progress(run).is_evaluated and read_progress(run).missing == []


def test_an_evaluated_run_with_another_stage_under_way_is_marked(tmp_path):
    run = write_run(tmp_path, make_results("mine"))
    begin(run, "sweep_scale", done=False)
    (table,) = build(read_runs([run])).sections[0].tables
    assert table.rows[1][0].line == "mine (not finished: sweep_scale)"


def test_without_any_evaluated_run_one_line_says_what_to_type(half):
    with pytest.raises(UserError) as error:
        evaluated_and_unfinished([half])
    message = str(error.value)
    assert "half lacks train_policy (300 of 600 steps), evaluate_policy; resume with python -m" in message
    assert f"--config.name=half --workdir={half.parent.parent}" in message and "\n" not in message
