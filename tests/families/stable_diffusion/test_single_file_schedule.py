"""What single files, and folders, say of what their U-Net predicts."""

import functools
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from single_file import make_models, single_file_of

from hgdpo_jax.diffusion.schedule import NoiseSchedule
from hgdpo_jax.diffusion.schedule_settings import ScheduleSettings
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_fingerprints
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.families.stable_diffusion.single_file_schedule import scheduler_config

V = "v_prediction"


def yaml(parameterization, **others):
    """An LDM configuration, with a comment of the other kind."""
    lines = [f"    {name}: {value}" for name, value in others.items()]
    head = ["model:", "  params:", '    # parameterization: "eps"', f"    parameterization: {parameterization}"]
    return "\n".join([*head, *lines, ""])


@pytest.mark.parametrize(
    ("names", "metadata", "beside", "expected"),
    [
        ([], {}, "", {}),
        ([], {"modelspec.prediction_type": "epsilon", "modelspec.architecture": "stable-diffusion-v1"}, "", {}),
        ([], {"modelspec.prediction_type": "v"}, "", {"prediction_type": V}),
        ([], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "", {"prediction_type": V}),
        ([], {"ss_v_parameterization": "True"}, "", {"prediction_type": V}),
        (["v_pred"], {}, "", {"prediction_type": V}),
        (["v_pred", "ztsnr"], {}, "", {"prediction_type": V, "rescale_betas_zero_snr": True}),
        (
            [],
            {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"},
            "",
            {"prediction_type": V, "rescale_betas_zero_snr": True},
        ),
        ([], {}, yaml('"v"'), {"prediction_type": V}),
        ([], {}, yaml("v", timesteps=500, linear_end='"0.02"'), {"num_train_timesteps": 500, "beta_end": 0.02}),
        # The configuration beside a file is the user's word against the file's.
        (["v_pred", "ztsnr"], {"modelspec.prediction_type": "v"}, yaml("eps"), {"prediction_type": "epsilon"}),
    ],
)
def test_a_file_says_what_it_predicts_in_all_ways_of_other_programs(tmp_path, names, metadata, beside, expected):
    if beside:
        (tmp_path / "a.yaml").write_text(beside)
    config = scheduler_config(epath.Path(tmp_path / "a.safetensors"), {name: np.zeros(0) for name in names}, metadata)
    usual = {"prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    if beside and "v" in beside:
        usual["prediction_type"] = config["prediction_type"]
    assert config.items() >= (usual | expected).items()
    assert config.get("rescale_betas_zero_snr", False) == expected.get("rescale_betas_zero_snr", False)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"v_pred": np.zeros(0)}, {"modelspec.prediction_type": "epsilon"}, "'epsilon' .modelspec.* and 'v' .the ten"),
        ({}, {"modelspec.prediction_type": "sample"}, "should predict 'sample' .modelspec.prediction_type., expected"),
        ({"alphas_cumprod": np.linspace(0.99, 0.2, 1000)}, {}, "another noise schedule: .* 1000 steps down to 0.2"),
        ({"alphas_cumprod": np.linspace(0.99, 0.0, 1000)}, {}, "another noise schedule"),
    ],
)
def test_a_file_that_contradicts_itself_or_says_something_unknown_is_refused(tmp_path, tensors, metadata, message):
    with pytest.raises(UserError, match=message) as error:
        scheduler_config(epath.Path(tmp_path / "a.safetensors"), tensors, metadata)
    assert len(str(error.value).splitlines()) == 1
    assert "a.yaml" in str(error.value)


@pytest.mark.parametrize("prediction", ["epsilon", V])
def test_a_stored_table_of_the_known_schedule_says_nothing_new(tmp_path, prediction):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": prediction}
    rescaled = {"rescale_betas_zero_snr": prediction == V}
    tensors = {"alphas_cumprod": NoiseSchedule.from_dict(config | rescaled).alphas_cumprod.astype(np.float16)}
    metadata = {"modelspec.prediction_type": prediction}
    found = scheduler_config(epath.Path(tmp_path / "a.safetensors"), tensors, metadata)
    assert NoiseSchedule.from_dict(found).alphas_cumprod[-1] == tensors["alphas_cumprod"][-1] or prediction == "epsilon"


@pytest.fixture(scope="module")
def velocity_file(tmp_path_factory):
    """A small checkpoint in one file that says by its metadata that it predicts velocities."""
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    spec = {
        "unet": {"channels": (32, 64), "layers": 1, "attentive": (0,), "text_width": 64},
        "vae": {"channels": (32, 64), "layers": 1},
        "text_encoder": {"vocab_size": 54, "width": 64, "layers": 1},
    }
    torch.manual_seed(0)
    tensors = {name: tensor.numpy() for name, tensor in single_file_of(make_models(**spec), spec).items()}
    path = tmp_path_factory.mktemp("velocity") / "v.safetensors"
    safetensors.numpy.save_file(tensors, path, {"modelspec.prediction_type": "v"})
    return path


def test_a_file_of_velocities_is_loaded_and_saved_as_one(velocity_file, tokenizer_folder, tmp_path):
    model = StableDiffusion.load(velocity_file, tokenizer=str(tokenizer_folder))
    assert model.schedule.prediction_type == V
    model.save(tmp_path / "saved", "float32")
    saved = json.loads((tmp_path / "saved/scheduler/scheduler_config.json").read_text())
    assert saved["prediction_type"] == V
    assert StableDiffusion.load(tmp_path / "saved").schedule.prediction_type == V


def test_a_file_and_a_folder_of_the_same_weights_draw_the_same_once_the_spacing_is_set(
    velocity_file, tokenizer_folder, tmp_path
):
    def draw(model):
        return model.generate("a b", [0, 1], width=32, height=32, steps=4)

    single = functools.partial(StableDiffusion.load, velocity_file, tokenizer=str(tokenizer_folder))
    single().save(tmp_path / "folder", "float32")
    config = tmp_path / "folder/scheduler/scheduler_config.json"
    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    config.write_text(json.dumps(json.loads(config.read_text()) | leading))
    expected = draw(StableDiffusion.load(tmp_path / "folder"))
    assert np.abs(draw(single()).astype(int) - expected).max() > 10
    replaced = single(schedule=ScheduleSettings(**leading))
    np.testing.assert_array_equal(draw(replaced), expected)
    # So a base that was fine-tuned with such a setting needs it no longer.
    replaced.save(tmp_path / "saved", "float32")
    np.testing.assert_array_equal(draw(StableDiffusion.load(tmp_path / "saved")), expected)


def test_the_prediction_that_a_config_sets_settles_what_a_file_contradicts(tmp_path):
    tensors, metadata = {"v_pred": np.zeros(0), "ztsnr": np.zeros(0)}, {"modelspec.prediction_type": "epsilon"}
    found = scheduler_config(epath.Path(tmp_path / "a.safetensors"), tensors, metadata, V)
    assert (found["prediction_type"], found["rescale_betas_zero_snr"]) == (V, True)


def test_the_noise_that_a_folder_of_velocities_predicts_follows_from_them(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": V}))
    latents, states = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate([(2, 4, 4, 4), (2, 77, 16)]))
    velocity, noise = (
        StableDiffusion.load(source).predict_noise(latents.astype(np.float32), np.array([10, 900]), states)
        for source in (tiny_base, folder)
    )
    alphas_cumprod = StableDiffusion.load(folder).schedule.alphas_cumprod[[10, 900]][:, None, None, None]
    expected = np.sqrt(alphas_cumprod) * velocity + np.sqrt(1 - alphas_cumprod) * latents
    np.testing.assert_allclose(noise, expected, atol=1e-5)


def test_loading_warns_once_in_one_line_of_a_sampler_setting_that_it_ignores(tiny_base, tmp_path, capsys):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"solver_order": 3, "thresholding": False}))
    for _ in range(2):
        StableDiffusion.load(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "has solver_order 3: ignored" in line


def test_what_is_beside_a_file_counts_as_a_part_of_it(velocity_file, tiny_base, tmp_path, tokenizer_folder):
    from hgdpo_jax.base_config import base_config, typed

    prints = []
    for name, beside in (("plain", ""), ("described", yaml("eps")), ("again", yaml("v"))):
        path = shutil.copy(velocity_file, tmp_path / f"{name}.safetensors")
        if beside:
            (tmp_path / f"{name}.yaml").write_text(beside)
        config = base_config()
        config.weights.base, config.weights.tokenizer = str(path), str(tokenizer_folder)
        prints.append(base_fingerprints(typed(config)))
    assert prints[0] == prints[2] != prints[1]
    # A file of the usual schedule has no more than its content.
    assert set(prints[1]) == {"weights.family", "model.revision", "weights.base", "weights.tokenizer"}
