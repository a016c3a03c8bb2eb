"""Runs are read as they were written, and refused where they are not comparable."""

import json

import numpy as np
import pytest
from runs_on_disk import PROMPTS, SETTINGS, make_results, make_sweep, write_run

from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pages.joined.content import build
from hgdpo_jax.pages.joined.formats import as_json
from hgdpo_jax.pages.joined.runs import read_runs, rows_of


def refused(tmp_path, *results):
    """The message with which these results are refused."""
    folders = [write_run(tmp_path / str(index), each) for index, each in enumerate(results)]
    with pytest.raises(UserError) as error:
        rows_of(read_runs(folders))
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(results, **entries):
    return {**results, **entries}


def test_a_run_has_what_was_written(tmp_path):
    results = make_results("n20-3", lead=0.5)
    (run,) = read_runs([write_run(tmp_path, results, make_sweep("n20-3"))])
    assert (run.name, run.row, run.results.headline, list(run.results.scores)) == (
        "n20-3",
        "n20",
        "judge",
        ["scorer", "judge", "oracle"],
    )
    np.testing.assert_array_equal(
        run.results.models["tuned"].scores["judge"], results["models"]["tuned"]["scores"]["judge"]
    )
    assert run.base.scores["judge"].shape == (len(PROMPTS), 2) and run.base.colors.saturation == 0.40
    scales = [model.scale for model in run.sweep.models.values() if model.pictures]
    assert scales == [0.0, 0.5, 1.0] and (run.sweep_folder / "images" / "1-2.png").is_file()


def test_an_unusable_image_is_null_in_the_results_and_left_out_of_the_tables(tmp_path):
    results = [make_results(name, lead=0.5) for name in ("n20", "n5")]
    for each in results:
        each["models"]["base"]["scores"]["judge"][0] = [None, 1.0]
        each["models"]["tuned"]["scores"]["judge"][1] = [None, None]
    runs = read_runs([write_run(tmp_path, each) for each in results])
    base, tuned = (runs[0].results.models[name].scores["judge"] for name in ("base", "tuned"))
    assert win_rate(tuned, base).prompts == len(PROMPTS) - 1
    assert "NaN" not in as_json(build(runs))
    results[1]["models"]["base"]["scores"]["judge"][0] = [2.0, 1.0]
    assert "the base's scores by" in refused(tmp_path / "other", *results)


def test_a_run_named_twice_counts_once(tmp_path):
    folder = write_run(tmp_path, make_results("n20"))
    assert len(read_runs([folder, tmp_path / "." / "n20", str(folder) + "/"])) == 1


def test_training_seeds_are_told_from_names_that_end_in_figures(tmp_path):
    names = ["n20-1", "n20-12", "n20", "n5", "my-run-2", "my_run_7"]
    rows = [run.row for run in read_runs([write_run(tmp_path, make_results(name)) for name in names])]
    assert rows == ["n20", "n20", "n20", "n5", "my-run", "my_run_7"]


def test_training_seeds_lie_side_by_side_in_a_row(tmp_path):
    runs = read_runs([write_run(tmp_path, make_results(name)) for name in ("n20-1", "n5", "n20-2", "other")])
    rows = rows_of(runs)
    assert list(rows) == ["n5", "n20"]
    expected = np.concatenate(
        [runs[0].results.models["tuned"].scores["judge"], runs[2].results.models["tuned"].scores["judge"]], axis=1
    )
    np.testing.assert_array_equal(rows["n20"].scores("judge"), expected)


def test_latent_normalisation_comes_from_its_own_run_or_else_from_that_of_n20(tmp_path):
    both = make_results("n20", lead=0.1)
    other = make_results("other", lead=0.4)["models"]["tuned"]
    both["models"]["tuned_lan"] = {**other, "adapter": "sha-n20", "latent_normalization": True}
    folder = write_run(tmp_path, both)
    rows = rows_of(read_runs([folder]))
    np.testing.assert_array_equal(rows["n20_lan"].scores("judge"), other["scores"]["judge"])
    np.testing.assert_array_equal(rows["n20"].scores("judge"), both["models"]["tuned"]["scores"]["judge"])

    own = make_results("n20_lan", lead=0.2)
    own["models"]["tuned"]["latent_normalization"] = True
    rows = rows_of(read_runs([folder, write_run(tmp_path, own)]))
    np.testing.assert_array_equal(rows["n20_lan"].scores("judge"), own["models"]["tuned"]["scores"]["judge"])


def test_a_run_called_n20_lan_that_was_drawn_without_it_is_no_such_row(tmp_path):
    assert "n20_lan" not in rows_of(read_runs([write_run(tmp_path, make_results("n20_lan"))]))


def test_different_settings_are_refused_by_name(tmp_path):
    message = refused(
        tmp_path,
        make_results("n20"),
        make_results("n5", settings={**SETTINGS, "pool.steps": 50, "dtype": "float32"}),
    )
    assert "n20 and n5" in message and "pool.steps 20 -> 50" in message and 'dtype (none) -> "float32"' in message
    assert "weights.base" not in message


def test_different_prompts_scores_or_headlines_are_refused(tmp_path):
    first = make_results("n20")
    other_prompts = ["another prompt", *PROMPTS[1:]]
    assert "different prompts" in refused(tmp_path / "a", first, make_results("n5", prompts=other_prompts))
    assert 'headline "judge" -> "scorer"' in refused(tmp_path / "b", first, make_results("n5", headline="scorer"))
    two_scores = {name: first["scores"][name] for name in ("scorer", "judge")}
    assert "oracle" in refused(tmp_path / "c", first, make_results("n5", scores=two_scores))


def test_a_base_that_scores_differently_is_refused_and_rounding_is_not(tmp_path):
    first, second = make_results("n20"), make_results("n5")
    second["models"]["base"]["scores"]["oracle"][3][1] += 1e-7
    read_runs([write_run(tmp_path, first), write_run(tmp_path, second)])
    second["models"]["base"]["scores"]["oracle"][3][1] += 1e-4
    message = refused(tmp_path / "refused", first, second)
    assert "Attribute oracle" in message and "n20 and n5" in message and "0.0001" in message


def test_one_lora_does_not_count_as_two_training_seeds(tmp_path):
    first, second = make_results("n20-1"), make_results("n20-2")
    second["models"]["tuned"]["adapter"] = first["models"]["tuned"]["adapter"]
    assert "n20-1 and n20-2 hold the same LoRA" in refused(tmp_path, first, second)


def test_two_runs_of_one_name_are_refused(tmp_path):
    assert "two runs are called n20" in refused(tmp_path, make_results("n20"), make_results("n20"))


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        read_runs([tmp_path / "n20"])
    (tmp_path / "n20").mkdir()
    with pytest.raises(UserError, match=r"results.json is missing: run python -m hgdpo_jax.main .*config.name=n20"):
        read_runs([tmp_path / "n20"])


def cut(text):
    return text[:100]


def with_a_gap(text):
    values = json.loads(text)
    values["models"]["tuned"]["scores"]["judge"] = [[None, None] for _ in PROMPTS]
    return json.dumps(values)


def with_a_prompt_less(text):
    values = json.loads(text)
    values["prompts"].pop()
    return json.dumps(values)


def with_a_seed_less(text):
    values = json.loads(text)
    values["models"]["tuned"]["scores"]["judge"] = [row[:1] for row in values["models"]["tuned"]["scores"]["judge"]]
    return json.dumps(values)


@pytest.mark.parametrize("damage", [cut, with_a_gap, with_a_prompt_less, with_a_seed_less, lambda _: "[]"])
def test_a_damaged_file_is_named_with_what_to_run(tmp_path, damage):
    folder = write_run(tmp_path, make_results("n20"))
    path = folder / "evaluate_policy" / "results.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"results.json is damaged .*: delete .*evaluate_policy and run python -m"):
        read_runs([folder])


def test_results_of_another_version_are_refused_with_what_to_run(tmp_path):
    results = make_results("n20")
    del results["version"]
    folder = write_run(tmp_path, results)
    with pytest.raises(UserError, match=r"results.json has version 1, expected 2: delete .*evaluate_policy and run"):
        read_runs([folder])


def test_a_run_that_did_not_evaluate_the_base_is_refused(tmp_path):
    results = make_results("n20")
    results["models"]["other"] = results["models"].pop("base")
    with pytest.raises(UserError, match="n20 was evaluated without the base: put base in config.evaluate.models"):
        read_runs([write_run(tmp_path, results)])


def test_a_sweep_without_its_images_is_damaged(tmp_path):
    folder = write_run(tmp_path, make_results("n20"), make_sweep("n20"))
    (folder / "sweep_scale" / "images" / "1-2.png").unlink()
    with pytest.raises(UserError, match=r"sweep_scale/results.json is damaged \(images/1-2.png is missing\): .*"):
        read_runs([folder])


def test_sweeps_with_different_settings_are_refused(tmp_path):
    other = make_sweep("n5") | {"settings": {**SETTINGS, "sweep.prompts": 8}}
    folders = [
        write_run(tmp_path, make_results("n20"), make_sweep("n20")),
        write_run(tmp_path, make_results("n5"), other),
    ]
    with pytest.raises(UserError, match=r"sweep_scale of n20 and n5 .*sweep.prompts 32 -> 8"):
        read_runs(folders)
