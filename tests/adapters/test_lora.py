import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.adapters import lora
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.model import targets_of
from hgdpo_jax.families.stable_diffusion.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=4,
    norm_num_groups=8,
)
MODEL = UNet(CONFIG)
INPUTS = (
    jax.random.normal(jax.random.key(1), (2, 8, 8, 4)),
    jnp.array([3, 700], jnp.int32),
    jax.random.normal(jax.random.key(2), (2, 5, 24)),
)


@pytest.fixture(scope="module")
def params():
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *INPUTS)["params"]
    return jax.tree.map(lambda leaf: generator.normal(0.0, 0.1, leaf.shape).astype(np.float32), shapes)


def filled(params, seed, rank=4):
    """An adapter that changes something."""
    adapter = lora.initialize(jax.random.key(seed), targets_of(params), rank)
    keys = jax.random.split(jax.random.key(seed + 1), len(adapter))
    return {
        path: {"down": entry["down"], "up": jax.random.normal(key, entry["up"].shape)}
        for key, (path, entry) in zip(keys, adapter.items(), strict=True)
    }


@jax.jit
def predict(params, adapters, inputs):
    with lora.apply(adapters):
        return MODEL.apply({"params": params}, *inputs)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_every_attention_has_eight_targets(params):
    targets = targets_of(params)
    # One attention in the down block, one in the middle, two in the up block.
    assert len(targets) == 4 * 8
    assert targets["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"] == (24, 64)
    assert targets["up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0"] == (32, 32)


def test_stable_diffusion_has_128_targets_and_1594368_parameters_at_rank_8():
    shapes = jax.eval_shape(
        UNet(UNetConfig()).init,
        jax.random.key(0),
        jnp.zeros((1, 8, 8, 4)),
        jnp.zeros(1, jnp.int32),
        jnp.zeros((1, 77, 768)),
    )
    targets = targets_of(shapes["params"])
    adapter = jax.eval_shape(lambda: lora.initialize(jax.random.key(0), targets, 8))
    assert len(adapter) == 128
    assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == 1_594_368


def test_a_fresh_adapter_changes_nothing_and_has_the_reference_spread(params):
    adapter = lora.initialize(jax.random.key(0), targets_of(params), 4)
    np.testing.assert_array_equal(predict(params, [], INPUTS), predict(params, [(adapter, 1.0)], INPUTS))
    drawn = np.concatenate([entry["down"].ravel() for entry in adapter.values()])
    assert abs(drawn.std() - 1 / 4) < 0.01


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_merged_weights_give_what_the_branch_gives(params, scale):
    adapter = filled(params, 5)
    branch = predict(params, [(adapter, scale)], INPUTS)
    merged = predict(lora.merge(params, adapter, scale), [], INPUTS)
    assert relative(branch, merged) < 1e-4
    assert (relative(branch, predict(params, [], INPUTS)) > 1e-2) == (scale > 0)


def test_several_adapters_add_up(params):
    first, second = filled(params, 5), filled(params, 7, rank=2)
    both = predict(params, [(first, 0.5), (second, 0.25)], INPUTS)
    merged = lora.merge(lora.merge(params, first, 0.5), second, 0.25)
    assert relative(both, predict(merged, [], INPUTS)) < 1e-4


def test_the_branch_follows_the_models_type(params):
    model = UNet(CONFIG, jnp.bfloat16)
    with lora.apply([(filled(params, 5), 0.5)]):
        shape = jax.eval_shape(model.apply, {"params": params}, *INPUTS)
    assert shape.dtype == jnp.bfloat16


def test_an_adapter_of_another_model_is_refused_in_one_line(params):
    targets = targets_of(params)
    adapter = filled(params, 5)
    lora.check(adapter, targets)
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    wide = adapter | {path: {"down": jnp.zeros((32, 4)), "up": jnp.zeros((4, 64))}}
    for other, message in [
        (
            adapter | {"mid_block.attentions.9.to_q": adapter[path]},
            "mid_block.attentions.9.to_q, which this model does not",
        ),
        (wide, f"maps 32 to 64 channels at {path}, expected 24 to 64"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            lora.check(other, targets)
        assert len(str(error.value).splitlines()) == 1
        with pytest.raises(UserError):
            lora.merge(params, other, 1.0)
