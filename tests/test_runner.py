"""An experiment run from Python."""

import pytest
import small_stages

import hgdpo_jax as hg
from hgdpo_jax.errors import UserError


@pytest.fixture
def config(tmp_path, monkeypatch):
    with small_stages.in_place(tmp_path, monkeypatch):
        yield hg.load_config(str(tmp_path / "tiny.py"))


def test_a_run_from_python_returns_folders_and_goes_on_where_it_was(config, tmp_path, capsys):
    first = hg.run(config, workdir=tmp_path / "work", stages=("draw",))
    assert first == hg.run(config, tmp_path / "work", ("draw",))
    assert dict(first.folders) == {"draw": tmp_path / "work/runs/tiny/draw"} and first.report is first.summary is None
    both = hg.run(config, tmp_path / "work")
    assert list(both.folders) == ["draw", "judge"] and both.report == both.folders["judge"] / "report/index.html"
    assert [(stage.name, stage.state) for stage in hg.plan(config, tmp_path / "work").stages] == [
        ("draw", "done"),
        ("judge", "done"),
    ]


def test_a_field_that_was_set_in_python_counts_and_is_checked(config, tmp_path, capsys):
    config.pool.steps = 7
    assert hg.plan(config, tmp_path / "work").stages[0].cost == "7 steps"
    config.pool.steps = 0
    with pytest.raises(UserError, match="pool.steps is 0, expected"):
        hg.run(config, tmp_path / "work")
    config.pool.steps, config.name = 7, ""
    with pytest.raises(UserError, match="config.name is empty"):
        hg.run(config, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_stage_may_read_others_in_one_experiment_than_in_another(config, tmp_path):
    judge = tmp_path / "stages" / "judge.py"
    judge.write_text(
        small_stages.JUDGE.replace(
            'INPUTS = ("draw",)', 'def inputs(config):\n    return ("draw",) if config.adapter.rank > 4 else ()'
        )
    )
    folder = tmp_path / "work"
    with pytest.raises(UserError, match="judge reads draw, which is not done"):
        hg.run(config, folder, ("judge",))
    config.adapter.rank = 4
    with pytest.raises(RuntimeError, match="judge reads draw but does not name it"):
        hg.run(config, folder, ("judge",))


def test_the_public_name_is_the_function_whoever_was_imported_first():
    from hgdpo_jax import main, runner

    assert hg.run is runner.run and callable(main.main)


def test_what_is_no_config_is_refused_and_one_stage_may_be_given_alone(config, tmp_path):
    with pytest.raises(UserError, match=r"expected that of load_config\(...\)"):
        hg.plan({"seed": 1})
    assert [stage.name for stage in hg.plan(config, tmp_path / "work", "draw").stages] == ["draw"]
    with pytest.raises(UserError, match="judge reads draw, which is not done"):
        hg.plan(config, tmp_path / "work", "judge")
