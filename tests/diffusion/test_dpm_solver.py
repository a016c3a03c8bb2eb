import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.diffusion import dpm_solver
from hgdpo_jax.diffusion.schedule import NoiseSchedule
from hgdpo_jax.errors import UserError

SPACINGS = [("linspace", 0), ("leading", 1), ("trailing", 0)]


PREDICTIONS = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "zero terminal SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "karras": {"use_karras_sigmas": True},
}


def schedule_of(spacing, offset):
    return NoiseSchedule.scaled_linear(0.00085, 0.012, 1000, timestep_spacing=spacing, steps_offset=offset)


def predict_noise(latents, timestep, tanh=jnp.tanh):
    """Bends with the latents and with time, and reaches across channels; for jax and for torch."""
    return tanh(0.8 * latents - 0.3 * latents[..., np.array([3, 2, 1, 0])]) * (0.6 + timestep / 2000)


def start():
    return np.random.default_rng(0).standard_normal((2, 4, 3, 4), np.float32)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own.
@pytest.mark.parametrize(
    ("steps", "spacing", "prediction"),
    [
        *((steps, spacing, "epsilon") for steps in (1, 2, 10, 20, 50) for spacing in SPACINGS),
        *((10, spacing, "v_prediction") for spacing in SPACINGS),
        (10, ("trailing", 0), "zero terminal SNR"),
        *((steps, ("leading", 1), "karras") for steps in (1, 10, 50)),
    ],
)
def test_trajectory_agrees_with_diffusers(steps, spacing, prediction):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    reference = diffusers.DPMSolverMultistepScheduler(
        1000,
        0.00085,
        0.012,
        "scaled_linear",
        timestep_spacing=spacing[0],
        steps_offset=spacing[1],
        **PREDICTIONS[prediction],
    )
    reference.set_timesteps(steps)
    latents = torch.from_numpy(start())
    visited = []
    for timestep in reference.timesteps:
        noise = predict_noise(latents, timestep, torch.tanh)
        latents = reference.step(noise, timestep, latents).prev_sample
        visited.append(latents.numpy())

    schedule = NoiseSchedule.from_dict(reference.config)
    np.testing.assert_array_equal(dpm_solver.timesteps(schedule, steps), reference.timesteps.numpy())
    seen = []

    def record(latents):
        jax.debug.callback(seen.append, latents, ordered=True)
        return latents

    result = dpm_solver.sample(predict_noise, jnp.asarray(start()), schedule, steps, record)
    jax.effects_barrier()
    assert result.dtype == jnp.float32
    # Both float32; the reference takes logarithms and exponentials of log-SNRs, which costs it some digits.
    for ours, theirs in zip(seen, visited, strict=True):
        assert np.linalg.norm(ours - theirs) < 5e-6 * np.linalg.norm(theirs)
    np.testing.assert_array_equal(result, seen[-1])


def test_a_perfect_denoiser_leads_to_its_image():
    schedule = schedule_of("linspace", 0)
    image = np.random.default_rng(1).uniform(-1, 1, (1, 4, 3, 4)).astype(np.float32)

    def perfect(latents, timestep):
        alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)[timestep]
        return (latents - jnp.sqrt(alphas_cumprod) * image) / jnp.sqrt(1 - alphas_cumprod)

    np.testing.assert_allclose(dpm_solver.sample(perfect, start()[:1], schedule, 10), image, atol=1e-4)


def test_prediction_is_traced_once_whatever_the_steps():
    traces = []

    def counted(latents, timestep):
        traces.append(timestep)
        return predict_noise(latents, timestep)

    jax.jit(lambda x: dpm_solver.sample(counted, x, schedule_of("linspace", 0), 30)).lower(start())
    assert len(traces) == 1


@pytest.mark.parametrize("steps", [0, 1000])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(UserError, match=f"{steps} sampling steps"):
        dpm_solver.timesteps(schedule_of("linspace", 0), steps)
