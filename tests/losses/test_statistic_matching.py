import jax
import numpy as np
import pytest

from hgdpo_jax import losses
from hgdpo_jax.diffusion import ddpm
from hgdpo_jax.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear(0.00085, 0.012, 1000)
TIMESTEPS = np.array([1, 20, 162, 500, 999])


def draw():
    random = np.random.default_rng(0)
    latents, reference, noise = random.standard_normal((3, len(TIMESTEPS), 6, 5, 4), np.float32)
    return latents, reference + 0.1 * random.standard_normal(reference.shape, np.float32), reference, noise


def loss(policy_noise, reference_noise, latents, noise, stride=1):
    steps = (
        ddpm.step(SCHEDULE, predicted, TIMESTEPS, latents, noise, stride)
        for predicted in (policy_noise, reference_noise)
    )
    return losses.statistic_matching(*steps)


def test_loss_equals_the_one_of_two_explicit_sampler_steps_with_shared_noise():
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    latents, policy_noise, reference_noise, _ = draw()
    sampler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False)
    expected = []
    for image, timestep in enumerate(TIMESTEPS):
        policy, reference = (
            sampler.step(
                torch.from_numpy(predicted[image : image + 1]).double(),
                int(timestep),
                torch.from_numpy(latents[image : image + 1]).double(),
                torch.Generator().manual_seed(image),
            ).prev_sample.mean(dim=(1, 2))
            for predicted in (policy_noise, reference_noise)
        )
        expected.append(((policy - reference) ** 2).sum().item())
    # The reference's float32 betas have four digits at small t, and the loss squares them.
    np.testing.assert_allclose(loss(policy_noise, reference_noise, latents, None), expected, rtol=3e-4)


def test_loss_has_the_closed_form_of_the_two_predictions():
    latents, policy_noise, reference_noise, noise = draw()
    betas, alphas_cumprod = SCHEDULE.betas.astype(np.float64), SCHEDULE.alphas_cumprod.astype(np.float64)
    coefficient = (betas / np.sqrt((1 - betas) * (1 - alphas_cumprod)))[TIMESTEPS]
    shift = (reference_noise - policy_noise).mean(axis=(1, 2), dtype=np.float64)
    closed_form = coefficient**2 * (shift**2).sum(axis=-1)
    # beta against 1 - a ratio of float32 alphas_cumprod: 7e-5 of it at small t, then squared.
    np.testing.assert_allclose(loss(policy_noise, reference_noise, latents, None), closed_form, rtol=3e-4)


@pytest.mark.parametrize("stride", [1, 20])
def test_noise_that_both_steps_share_changes_neither_loss_nor_gradient(stride):
    latents, policy_noise, reference_noise, noise = draw()

    def value_and_gradient(noise):
        return jax.value_and_grad(lambda x: loss(x, reference_noise, latents, noise, stride).sum())(policy_noise)

    for with_noise, without in zip(value_and_gradient(noise), value_and_gradient(None), strict=True):
        # Latents near 1 are rounded at 1e-7; their shift is near 1e-3.
        assert np.linalg.norm(with_noise - without) < 1e-3 * np.linalg.norm(without)


def test_loss_is_zero_for_equal_means_whatever_the_deviation():
    latents = np.random.default_rng(0).standard_normal((2, 6, 5, 4)).astype(np.float32)
    wider = latents + np.where(np.arange(6) % 2, 1, -1)[:, None, None]
    np.testing.assert_allclose(losses.statistic_matching(latents, wider.astype(np.float32)), 0, atol=1e-12)


def test_loss_is_the_squared_shift_summed_over_channels():
    latents = np.zeros((2, 6, 5, 4), np.float32)
    np.testing.assert_allclose(losses.statistic_matching(latents, latents + np.arange(4, dtype=np.float32)), 14)
