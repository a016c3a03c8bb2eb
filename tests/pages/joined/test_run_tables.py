"""Models and pictures of runs side by side."""

import numpy as np
from runs_on_disk import PROMPTS, make_results, write_run

from hgdpo_jax.pages.joined.content import build
from hgdpo_jax.pages.joined.runs import read_runs
from hgdpo_jax.pages.pictures import read_image, webp_bytes

LEVELS = {"base": 100, "tuned": 150, "theirs": 200}


def write_evaluation(folder, name, models=("base", "tuned"), pictures=2):
    """A run whose models' pictures are of one grey each; the last model of three is a folder's."""
    results = make_results(name)
    if "theirs" in models:
        results["models"]["theirs"] = {**make_results("x")["models"]["tuned"], "label": "theirs", "adapter": ""}
    for model in models:
        results["models"][model]["pictures"] = [f"pictures/{model}-{row}.webp" for row in range(pictures)]
    path = write_run(folder, results)
    (path / "evaluate_policy" / "pictures").mkdir()
    for model in models:
        for file in results["models"][model]["pictures"]:
            image = np.full((64, 48, 3), LEVELS[model] + 10 * len(name), np.uint8)
            (path / "evaluate_policy" / file).write_bytes(webp_bytes(image, 64))
    return path


def test_pictures_of_the_base_and_of_every_model_stand_side_by_side_by_prompt(tmp_path):
    names = [write_evaluation(tmp_path, name, tuple(LEVELS)) for name in ("a", "bc")]
    runs, pictures, *_ = build(read_runs(names)).sections
    # The base, and what both compare with, are the same for both.
    columns = ["base", "a", "a, theirs", "bc"]
    assert [cells[0].text for cells in runs.tables[0].rows] == columns
    assert pictures.title == "Pictures" and list(pictures.grid.columns) == columns
    assert list(pictures.grid.prompts) == PROMPTS[:2]
    levels = [[read_image(image).mean() for image in row] for row in pictures.grid.images]
    np.testing.assert_allclose(levels, [[110, 160, 210, 170]] * 2, atol=2)


def test_runs_without_pictures_are_left_out_of_them_and_named(tmp_path):
    old = write_run(tmp_path, make_results("old"))
    pictures = build(read_runs([old, write_evaluation(tmp_path, "new")])).sections[1]
    assert list(pictures.grid.columns) == ["base", "new"]
    assert any("earlier version" in note and "old" in note for note in pictures.notes)
    assert "Pictures" not in [section.title for section in build(read_runs([old])).sections]
