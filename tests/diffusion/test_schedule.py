import numpy as np
import pytest

from hgdpo_jax.diffusion.schedule import (
    NoiseSchedule,
    add_noise,
    predicted_image,
    predicted_noise,
    training_target,
    unused_settings,
)
from hgdpo_jax.errors import UserError

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "trained_betas": None,
}


def test_noise_levels_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    schedule = NoiseSchedule.from_dict(STABLE_DIFFUSION)
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == np.float32
    # A few roundings of float32: numpy and PyTorch space their grids differently.
    np.testing.assert_allclose(schedule.betas, reference.betas.numpy(), rtol=5e-7)
    np.testing.assert_allclose(schedule.alphas_cumprod, reference.alphas_cumprod.numpy(), rtol=5e-7)


def test_noisy_latents_are_those_of_diffusers_for_a_timestep_an_image():
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    random = np.random.default_rng(0)
    clean, noise = random.standard_normal((2, 4, 3, 5, 4), np.float32)
    timesteps = np.array([0, 1, 500, 999])
    reference = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear").add_noise(
        torch.from_numpy(clean), torch.from_numpy(noise), torch.from_numpy(timesteps)
    )
    noisy = add_noise(NoiseSchedule.from_dict(STABLE_DIFFUSION), clean, noise, timesteps)
    # 1 - alphas_cumprod is 8.5e-4 at t = 0, where float32 holds it to 7e-5.
    np.testing.assert_allclose(noisy, reference.numpy(), rtol=1e-5, atol=1e-5)


def test_a_file_without_spacing_means_linspace():
    schedule = NoiseSchedule.from_dict(STABLE_DIFFUSION)
    assert (schedule.timestep_spacing, schedule.steps_offset) == ("linspace", 1)


@pytest.mark.parametrize(
    ("options", "described"),
    [
        ({}, "betas 0.00085 to 0.012 in 1,000 steps, epsilon, linspace spacing"),
        (
            {"timestep_spacing": "leading"},
            "betas 0.00085 to 0.012 in 1,000 steps, epsilon, leading spacing with offset 1",
        ),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "use_karras_sigmas": True},
            "betas 0.00085 to 1 in 1,000 steps, zero terminal SNR, v_prediction, Karras sigmas",
        ),
    ],
)
def test_schedule_says_in_words_what_it_is(options, described):
    assert str(NoiseSchedule.from_dict(STABLE_DIFFUSION | options)) == described


def test_nothing_is_noisy_before_the_first_timestep():
    schedule = NoiseSchedule.scaled_linear(0.1, 0.2, 3)
    np.testing.assert_array_equal(schedule.previous_alphas_cumprod(1), [1, *schedule.alphas_cumprod[:2]])
    np.testing.assert_array_equal(schedule.previous_alphas_cumprod(20), [1, 1, 1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prediction_type", "sample"),
        ("prediction_type", "flow_prediction"),
        ("beta_schedule", "linear"),
        # Nothing can be read off the noise of a step that is noise alone.
        ("rescale_betas_zero_snr", True),
        ("trained_betas", [0.1]),
        ("timestep_spacing", "karras"),
        ("variance_type", "learned_range"),
    ],
)
def test_another_schedule_is_refused_by_the_name_of_its_setting(name, value):
    with pytest.raises(UserError, match=name):
        NoiseSchedule.from_dict(STABLE_DIFFUSION | {name: value})


def test_missing_noise_levels_are_named():
    with pytest.raises(UserError, match="beta_end"):
        NoiseSchedule.from_dict({key: value for key, value in STABLE_DIFFUSION.items() if key != "beta_end"})


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_velocities_and_their_schedule_are_those_of_diffusers(zero_terminal_snr):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_terminal_snr}
    schedule = NoiseSchedule.from_dict(STABLE_DIFFUSION | config)
    reference = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", **config)
    # The signal of the last steps is a difference of nearly equal numbers in float32.
    np.testing.assert_allclose(schedule.alphas_cumprod, reference.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-9)
    assert (schedule.alphas_cumprod[-1] == 0) == zero_terminal_snr
    clean, noise = np.random.default_rng(0).standard_normal((2, 1000, 2, 2, 4)).astype(np.float32)
    timesteps = np.arange(1000)
    expected = reference.get_velocity(*map(torch.from_numpy, (clean, noise, timesteps)))
    velocity = training_target(schedule, clean, noise, timesteps)
    np.testing.assert_allclose(velocity, expected.numpy(), atol=1e-5)
    noisy = add_noise(schedule, clean, noise, timesteps)
    np.testing.assert_allclose(predicted_image(schedule, velocity, noisy, timesteps), clean, atol=1e-5)
    np.testing.assert_allclose(predicted_noise(schedule, velocity, noisy, timesteps), noise, atol=1e-5)


# The samplers that diffusers exchanges for each other, so that a file of any of them may come with a checkpoint.
SAMPLERS = (
    *(
        "DDIM",
        "DDPM",
        "PNDM",
        "LMSDiscrete",
        "EulerDiscrete",
        "HeunDiscrete",
        "EulerAncestralDiscrete",
        "DEISMultistep",
    ),
    *(
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "KDPM2Discrete",
        "KDPM2AncestralDiscrete",
        "UniPCMultistep",
        "SASolver",
    ),
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own.
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_file_of_any_sampler_as_diffusers_writes_it_is_understood(name):
    diffusers = pytest.importorskip("diffusers")
    config = getattr(diffusers, f"{name}Scheduler")(1000, 0.00085, 0.012, "scaled_linear").config
    assert unused_settings(config) == []
    schedule = NoiseSchedule.from_dict(config)
    assert schedule.timestep_spacing == config.get("timestep_spacing", "linspace")


@pytest.mark.parametrize(
    "setting",
    [
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"final_sigmas_type": "sigma_min"},
        {"thresholding": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"use_lu_lambdas": True},
        {"use_flow_sigmas": True},
        {"use_dynamic_shifting": True},
        {"timestep_type": "continuous"},
        {"a_field_of_later_versions": 7},
        {"": 7},
        {"_class_name": "LCMScheduler"},
    ],
)
def test_a_setting_that_draws_other_images_elsewhere_is_told(setting):
    (told,) = unused_settings(STABLE_DIFFUSION | setting)
    ((name, value),) = setting.items()
    assert told.startswith(value if name == "_class_name" else f"{name} {value!r}")
