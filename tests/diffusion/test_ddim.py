import numpy as np
import pytest

from hgdpo_jax.diffusion import ddim
from hgdpo_jax.diffusion.schedule import NoiseSchedule

# One an image, in no order.
TIMESTEPS = np.random.default_rng(1).permutation(1000)


@pytest.mark.parametrize(("stride", "prediction"), [(1, "epsilon"), (20, "epsilon"), (20, "v_prediction")])
def test_step_agrees_with_diffusers_at_every_timestep_each_image_at_its_own(stride, prediction):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    reference = diffusers.DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, prediction_type=prediction
    )
    reference.set_timesteps(1000 // stride)
    predicted, latents = np.random.default_rng(0).standard_normal((2, len(TIMESTEPS), 4, 3, 4), np.float32)
    expected = [
        reference.step(torch.from_numpy(predicted[i]), int(t), torch.from_numpy(latents[i])).prev_sample.numpy()
        for i, t in enumerate(TIMESTEPS)
    ]
    schedule = NoiseSchedule.from_dict(reference.config)
    result = ddim.step(schedule, predicted, TIMESTEPS, latents, stride)
    # Same formulas in float32; only the last digits of alphas_cumprod differ.
    np.testing.assert_allclose(result, np.stack(expected), rtol=1e-5, atol=2e-5)
