import dataclasses

import numpy as np
import pytest

from hgdpo_jax.diffusion import ddpm
from hgdpo_jax.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear(0.00085, 0.012, 1000)
# One an image, in no order.
TIMESTEPS = np.random.default_rng(1).permutation(1000)


def draw(*names):
    random = np.random.default_rng(0)
    return [random.standard_normal((len(TIMESTEPS), 4, 3, 4), np.float32) for _ in names]


@pytest.mark.parametrize(("stride", "prediction"), [(1, "epsilon"), (20, "epsilon"), (20, "v_prediction")])
def test_step_agrees_with_diffusers_at_every_timestep_each_image_at_its_own(stride, prediction):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    reference = diffusers.DDPMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, prediction_type=prediction
    )
    predicted, latents = draw("predicted", "latents")
    expected, noise = [], []
    for image, timestep in enumerate(TIMESTEPS):
        one = slice(image, image + 1)
        reference.set_timesteps(timesteps=[t for t in (timestep, timestep - stride) if t >= 0])
        noise.append(torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(image)).numpy())
        expected.append(
            reference.step(
                torch.from_numpy(predicted[one]),
                int(timestep),
                torch.from_numpy(latents[one]),
                torch.Generator().manual_seed(image),
            ).prev_sample.numpy()
        )
    schedule = dataclasses.replace(SCHEDULE, prediction_type=prediction)
    result = ddpm.step(schedule, predicted, TIMESTEPS, latents, np.concatenate(noise), stride)
    # diffusers works out 1 - alpha in float32, which leaves it four digits at small t.
    np.testing.assert_allclose(result, np.concatenate(expected), rtol=1e-4, atol=1e-4)


def test_step_before_the_first_timestep_is_the_predicted_clean_image():
    predicted, latents, noise = draw("predicted", "latents", "noise")
    result = ddpm.step(SCHEDULE, predicted, TIMESTEPS, latents, noise, stride=1000)
    alphas_cumprod = SCHEDULE.alphas_cumprod[TIMESTEPS][:, None, None, None].astype(np.float64)
    clean = (latents - np.sqrt(1 - alphas_cumprod) * predicted) / np.sqrt(alphas_cumprod)
    np.testing.assert_allclose(result, clean, rtol=1e-5, atol=1e-5)


def test_step_without_noise_is_the_mean():
    predicted, latents, noise = draw("predicted", "latents", "noise")
    mean = ddpm.step(SCHEDULE, predicted, TIMESTEPS, latents)
    above, below = (ddpm.step(SCHEDULE, predicted, TIMESTEPS, latents, sign * noise) for sign in (1, -1))
    np.testing.assert_allclose((above + below) / 2, mean, atol=1e-6 * np.abs(mean).max())
