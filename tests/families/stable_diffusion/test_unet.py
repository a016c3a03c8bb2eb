import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.adapters import lora
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.unet import UNet, UNetConfig
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


SMALL = UNetConfig(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=4,
)


def inputs(height, width):
    random = np.random.default_rng(0)
    latents, states = random.normal(size=(2, height, width, 4)), random.normal(size=(2, 7, 12))
    return latents.astype(np.float32), np.array([0, 981], np.int32), states.astype(np.float32)


def parameter_shapes(dtype="float32"):
    """Of an adapter and the weights."""
    params = jax.eval_shape(UNet(SMALL).init, jax.random.key(0), *inputs(8, 8))["params"]
    adapter = jax.eval_shape(lambda: lora.initialize(jax.random.key(1), lora.find_layers(params), 2))
    return adapter, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)


def loss(adapter, params, unet, arguments):
    with lora.apply([(adapter, 1.0)]):
        return jnp.square(unet.apply({"params": params}, *arguments).astype(jnp.float32)).mean()


@pytest.fixture(scope="module")
def gradients_of():
    """Gradients of adapter and weights."""
    random = np.random.default_rng(0)
    parameters = jax.tree.map(lambda x: random.normal(0, 0.2, x.shape).astype(np.float32), parameter_shapes())
    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    return lambda remat: gradient(*parameters, UNet(SMALL, remat=remat), inputs(8, 8))


@pytest.fixture(scope="module")
def whole_gradients(gradients_of):
    return gradients_of("none")


@pytest.mark.parametrize("remat", ["activations", "blocks"])
def test_what_is_made_again_gives_the_same_gradients_of_adapter_and_weights(gradients_of, whole_gradients, remat):
    found = gradients_of(remat)
    assert all(np.any(x) for x in jax.tree.leaves(found[0]))
    scale = max(np.abs(x).max() for x in jax.tree.leaves(whole_gradients))
    # Of the scale of them all: some, as those of a key's bias, are zero but for rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale), found, whole_gradients)


def kept_for_the_gradient(remat):
    """Shapes of the arrays that wait for the gradient of the adapter, parameters left out; here of 48x32 latents."""
    unet = UNet(SMALL, jnp.bfloat16, remat=remat)
    adapter, params = parameter_shapes("bfloat16")

    def kept(adapter, params):
        return jax.vjp(lambda adapter: loss(adapter, params, unet, inputs(48, 32)), adapter)[1]

    shapes = {x.shape for x in jax.tree.leaves((adapter, params))}
    return [x for x in jax.tree.leaves(jax.eval_shape(kept, adapter, params)) if x.shape not in shapes]


def test_no_activation_waits_in_float32_for_the_gradient_of_a_bfloat16_unet():
    def in_float32(remat):
        # Fewer channels has only the prediction, of which the loss is made.
        return [x.shape for x in kept_for_the_gradient(remat) if x.dtype == jnp.float32 and x.size >= 48 * 32 * 16]

    assert in_float32("none")
    assert not in_float32("activations")


def test_the_more_is_made_again_the_less_is_kept():
    none, activations, blocks = (
        sum(x.size * x.dtype.itemsize for x in kept_for_the_gradient(remat))
        for remat in ("none", "activations", "blocks")
    )
    assert activations < none / 2
    assert blocks < activations / 4
