"""Fine-tuning of a checkpoint with random weights on a few generated pictures, from the command line to the folder."""

import csv
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hgdpo_jax.data import encoded_images
from hgdpo_jax.data.encoded_images import read_encoded
from hgdpo_jax.data.image_folder import ImageFolder
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.main import main
from hgdpo_jax.run_log import read_scalars
from hgdpo_jax.stages import encode_images, finetune_base
from hgdpo_jax.weights.model_card import read_license

CONFIG = Path(__file__).parents[2] / "configs/finetune_base.py"
STEPS = 12
SMALL = {
    "dtype": "float32",
    "pool.width": 16,
    "pool.height": 24,
    "pool.steps": 2,
    "scoring.device_batch": 2,
    "finetune.batch_size": 4,
    "finetune.device_batch": 2,
    "finetune.steps": STEPS,
    "finetune.learning_rate": 1e-3,
    "finetune.warmup_steps": 2,
    "finetune.evaluate_every": 8,
    "finetune.checkpoint_every": 6,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of five pictures of different sizes, each of one colour with a stripe."""
    folder = tmp_path_factory.mktemp("images")
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for number, color in enumerate(["red", "green", "blue", "white", "black"]):
            picture = Image.new("RGB", (40 + 10 * number, 60), color)
            picture.paste("gray", (0, 5 * number, 80, 5 * number + 8))
            picture.save(folder / f"{color}.png")
            table.writerow([f"{color}.png", f"a portrait, {color} background"])
    return folder


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    """The tiny base with a licence."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny_base, folder)
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    return folder


@pytest.fixture(scope="module")
def start(base, images):
    """Starts the experiment in a workdir with changed settings; returns the exit status."""

    def run(workdir, *flags, **changes):
        given = SMALL | {"weights.base": base, "finetune.images": images} | changes
        overrides = [f"--config.{name}={value}" for name, value in given.items()]
        return main([f"--config={CONFIG}", f"--workdir={workdir}", *flags, *overrides])

    return run


@pytest.fixture(scope="module")
def result(start, tmp_path_factory):
    """The folder of the experiment's stages."""
    workdir = tmp_path_factory.mktemp("workdir")
    assert start(workdir) == 0
    return workdir / "runs/finetune_base"


def test_rows_hold_the_posterior_of_the_images_and_the_states_of_their_captions(result, base, images):
    encoded, captions = read_encoded(result / "encode_images")
    model = StableDiffusion.load(base)
    assert len(encoded) == 5 and captions[1] == "a portrait, green background"
    picture = ImageFolder.open(images, "text").image(2, 16, 24)
    mean, deviation = jax.jit(model.posterior)(model.parameters, picture[None])
    row = encoded[2]
    assert row["moments"].shape == (6, 4, 8) and row["moments"].dtype == np.float16
    np.testing.assert_allclose(row["moments"], np.concatenate([mean, deviation], axis=-1)[0], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(row["conditioning"], model.encode_prompts([captions[2]])[0], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("bad", "status"), [(1, 0), (4, 2)])
def test_few_images_that_cannot_be_encoded_are_left_out_and_many_stop_the_stage(
    start, tmp_path, monkeypatch, capsys, bad, status
):
    make_encode = encode_images.make_encode

    def with_nan(model):
        encode = make_encode(model)
        return lambda *arguments: encode(*arguments).at[:bad].set(jnp.nan)

    monkeypatch.setattr(encode_images, "make_encode", with_nan)
    flags = {"scoring.device_batch": 5}
    assert start(tmp_path, "--stage=encode_images", **flags) == status
    printed = capsys.readouterr().err
    assert f"{bad} of 5 images are unusable, first red.png: the values of the autoencoder of " in printed
    if status == 0:
        encoded, _ = read_encoded(tmp_path / "runs/finetune_base/encode_images")
        assert len(encoded) == 4 and all(np.isfinite(encoded[row]["moments"]).all() for row in range(4))


def test_loss_falls_and_samples_are_drawn(result):
    scalars = read_scalars(result / "finetune_base")
    loss = [line["loss"] for line in scalars if "loss" in line]
    assert len(loss) == STEPS and np.mean(loss[-10:]) < 0.9 * np.mean(loss[:5])
    assert sorted(path.name for path in (result / "finetune_base/images").iterdir()) == [
        f"samples-{step:06d}.png" for step in (8, STEPS)
    ]


def test_every_weight_of_the_unet_is_trained_and_no_other(result, base):
    folders = base, result / "finetune_base/base"
    before, after = (jax.device_get(StableDiffusion.load(folder).parameters) for folder in folders)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a != b).any()), before["denoiser"], after["denoiser"]))
    for part in ("autoencoder", "text"):
        # Stored in half precision.
        half = jax.tree.map(lambda a: a.astype(np.float16), before[part])
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), half, after[part]))


def test_diffusers_loads_the_result_and_predicts_the_same_noise(result):
    import torch
    from diffusers import StableDiffusionPipeline

    folder = result / "finetune_base/base"
    model = StableDiffusion.load(folder)
    latents, states = np.ones((1, 6, 4, 4), np.float32), model.encode_prompts(["a portrait"])
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        theirs = pipe.unet(torch.from_numpy(latents.transpose(0, 3, 1, 2)), 500, torch.from_numpy(states)).sample
    ours = model.predict_noise(latents, [500], states)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


def test_the_licence_of_the_base_is_that_of_the_result(result):
    assert read_license(result / "finetune_base/base") == "creativeml-openrail-m"


def test_run_killed_between_checkpoints_ends_as_the_undisturbed_one(start, result, tmp_path, monkeypatch):
    class Killed(BaseException):
        """What nothing catches, like a kill."""

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(finetune_base, "contact_sheet", kill)
        with pytest.raises(Killed):
            start(tmp_path)
    assert start(tmp_path) == 0
    folders = [runs / "finetune_base" for runs in (result, tmp_path / "runs/finetune_base")]
    weights = [(folder / "base/unet/diffusion_pytorch_model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    losses = [[line["loss"] for line in read_scalars(folder)] for folder in folders]
    assert losses[0] == losses[1]


def test_captions_are_replaced_by_the_empty_prompt_in_their_share():
    dropped = finetune_base.drop_captions(seed=0, step=1, batch_size=1000, share=0.25)
    assert 0.2 < dropped.mean() < 0.3
    assert (dropped != finetune_base.drop_captions(seed=0, step=2, batch_size=1000, share=0.25)).any()


def test_plan_says_how_much_there_is_to_do(start, tmp_path, capsys):
    assert start(tmp_path, "--plan") == 0
    out = capsys.readouterr().out
    assert re.search("encode_images +to do +5 .* 5 images encoded at 16x24\n", out)
    assert re.search(f"finetune_base +to do .* {STEPS} steps of 4 images\n", out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune.images": ""}, "config.finetune.images is empty: set"),
        ({"finetune.caption_column": "caption"}, "has no column 'caption'"),
        ({"finetune.adam_bits": 16}, "finetune.adam_bits is 16"),
        ({"finetune.empty_captions": 1.5}, "finetune.empty_captions is 1.5"),
        ({"finetune.device_batch": 0}, "finetune.device_batch is 0"),
        ({"finetune.remat": "all"}, "finetune.remat is 'all'"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_encoded(start, tmp_path, capsys, changes, words):
    assert start(tmp_path, **changes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "runs").exists()


def test_changed_captions_are_refused_once_encoded(start, result, images, tmp_path, capsys):
    other = shutil.copytree(images, tmp_path / "other")
    table = other / "metadata.csv"
    table.write_text(table.read_text().replace("red background", "crimson background"))
    assert start(result.parents[1], **{"finetune.images": other}) == 2
    assert "encode_images in" in capsys.readouterr().err
    assert json.loads((result / "encode_images/images.json").read_text())["images"] == 5


def test_image_that_breaks_off_is_named_and_what_was_encoded_before_it_is_kept(
    start, images, tmp_path, monkeypatch, capsys
):
    for module in (encode_images, encoded_images):
        monkeypatch.setattr(module, "ROWS_PER_FILE", 2)
    folder = shutil.copytree(images, tmp_path / "images")
    whole = (folder / "white.png").read_bytes()
    # Of a JPEG file the beginning alone tells its size.
    noise = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    Image.fromarray(noise).save(folder / "white.png", "jpeg")
    (folder / "white.png").write_bytes((folder / "white.png").read_bytes()[:2000])
    changes = {"finetune.images": folder, "finetune.steps": 1}
    assert start(tmp_path, "--stage=encode_images", **changes) == 2
    assert "white.png cannot be decoded" in capsys.readouterr().err.splitlines()[-1]
    first = tmp_path / "runs/finetune_base/encode_images/rows/000000.safetensors"
    assert start(tmp_path, "--plan", **changes) == 0
    assert "5 images encoded at 16x24; done are 2" in capsys.readouterr().out
    written = first.stat().st_mtime_ns
    (folder / "white.png").write_bytes(whole)
    assert start(tmp_path, "--stage=encode_images", **changes) == 0
    assert first.stat().st_mtime_ns == written and len(list(first.parent.iterdir())) == 3
