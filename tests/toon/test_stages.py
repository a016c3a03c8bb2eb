"""The stages behind `make toon-weights`, with a few steps each, end in weights that load."""

from pathlib import Path

import numpy as np
import pytest
from etils import epath

import hgdpo_jax as hg
from hgdpo_jax.config_files import load_config
from hgdpo_jax.main import main
from hgdpo_jax.toon import package
from hgdpo_jax.toon.oracle import AttributeOracle, read_attributes
from hgdpo_jax.toon.portraits import split_of
from hgdpo_jax.toon.stages.train_clip import alike

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "toon_base": {
        "autoencoder.images": 1100,
        "autoencoder.batch_size": 2,
        "autoencoder.steps": 60,
        "clip.portraits": 64,
        "clip.steps": 3,
        "base_training.portraits": 64,
        "base_training.steps": 4,
        "base_training.keep_every": 2,
    },
    "toon_scorer": {
        "clip.portraits": 64,
        "clip.steps": 3,
        "scorer_training.weaker_steps": (2, 4),
        "scorer_training.portraits": 8,
        "scorer_training.samples": 4,
        "scorer_training.batch_size": 4,
        "scorer_training.steps": 3,
    },
}
SMALL["toon_judge"] = SMALL["toon_scorer"]
SMALL["toon_oracle"] = {"oracle.portraits": 64, "oracle.steps": 3}


def run(workdir: Path, name: str, **more) -> None:
    overrides = [f"--config.{field}={value}" for field, value in (SMALL[name] | more).items()]
    assert main([f"--config={CONFIGS / name}.py", f"--workdir={workdir}", *overrides]) == 0


def test_contrastive_batches_hold_training_portraits_that_colours_do_not_tell_apart():
    people = alike(first=0, groups=5)
    groups = [people[i : i + 4] for i in range(0, 20, 4)]
    assert [len({person.combination for person in group}) for group in groups] == [1] * 5
    assert len({person.combination for person in people}) == 5
    assert all(split_of(person.combination) == "train" for person in people)
    assert all(len({(person.hair_style, person.mouth, person.eyes) for person in group}) > 1 for group in groups)


@pytest.mark.parametrize("name", SMALL)
def test_the_configs_of_the_weights_are_read_with_their_own_settings(name):
    assert load_config(str(CONFIGS / f"{name}.py")).seed == list(SMALL).index(name)


@pytest.mark.slow
def test_a_few_steps_of_every_stage_give_weights_that_load_and_are_packaged_with_a_card(tmp_path, monkeypatch):
    base = tmp_path / "runs/toon_base/train_unet/base"
    run(tmp_path, "toon_base")
    for name in ("toon_scorer", "toon_judge", "toon_oracle"):
        run(tmp_path, name, **{"weights.base": base})
    prompt = "a portrait of a person"
    images = hg.StableDiffusion.load(base).generate([prompt], seeds=[0], width=48, height=64, steps=2)
    assert images.shape == (1, 64, 48, 3)
    scorer = hg.PickScore.load(tmp_path / "runs/toon_scorer/train_scorer/scorer", framing="pad")
    assert np.isfinite(scorer.score(images, [prompt])).all()
    oracle = AttributeOracle(str(tmp_path / "runs/toon_oracle/train_oracle/oracle"))
    assert 0.0 < oracle.accuracy["all"] < 1.0
    assert read_attributes(oracle.parameters, images).shape == (1, 8)

    monkeypatch.setattr(package, "WEIGHTS", epath.Path(tmp_path) / "weights")
    package.package(tmp_path)
    card = (tmp_path / "weights/MODEL_CARD.md").read_text()
    assert f"| hair color | {100 * oracle.accuracy['hair_color']:.1f} % |" in card
    assert {path.name for path in (tmp_path / "weights").iterdir()} >= {
        "base",
        "scorer",
        "judge",
        "oracle",
        "samples.png",
    }
