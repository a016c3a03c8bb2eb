import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.unet import UNet, UNetConfig
from hgdpo_jax.weights.conversion import to_tree

SHAPES = {
    "stable diffusion's blocks": (("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",), 2),
    "one layer a block": (("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",), 1),
    "attention at the lowest level": (("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2, 1),
}


@pytest.mark.parametrize(("blocks", "layers"), SHAPES.values(), ids=SHAPES.keys())
def test_unet_agrees_with_diffusers(blocks, layers):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    reference = diffusers.UNet2DConditionModel(
        sample_size=12,
        block_out_channels=(32, 64, 64),
        down_block_types=blocks,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(blocks)),
        layers_per_block=layers,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    with torch.no_grad():
        for parameter in reference.parameters():
            # Fresh norms have gain 1 and shift 0, which hides mistakes.
            parameter.add_(0.05 * torch.randn_like(parameter))
    model = UNet(UNetConfig.from_dict(dict(reference.config)))
    generator = np.random.default_rng(0)
    latents = generator.normal(size=(2, 12, 8, 4)).astype(np.float32)
    states = generator.normal(size=(2, 7, 24)).astype(np.float32)
    timesteps = np.array([0, 981], np.int32)
    template = jax.eval_shape(model.init, jax.random.key(0), latents, timesteps, states)["params"]
    params = to_tree({name: value.numpy() for name, value in reference.state_dict().items()}, template, "unet")
    found = jax.jit(model.apply)({"params": params}, latents, timesteps, states)
    with torch.no_grad():
        sample = torch.tensor(latents).permute(0, 3, 1, 2)
        expected = reference(sample, torch.tensor(timesteps), torch.tensor(states)).sample
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4


def test_stable_diffusion_has_its_number_of_parameters():
    inputs = (jnp.zeros((1, 8, 8, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 77, 768)))
    shapes = jax.eval_shape(UNet(UNetConfig()).init, jax.random.key(0), *inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 859_520_964


@pytest.mark.parametrize(
    "values",
    [{"use_linear_projection": True}, {"attention_head_dim": [5, 10, 20, 20]}, {"class_embed_type": "timestep"}],
)
def test_another_architecture_is_refused(values):
    with pytest.raises(UserError, match="Stable Diffusion 1.x"):
        UNetConfig.from_dict(values)
