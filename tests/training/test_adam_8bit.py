"""Golden values come from bitsandbytes 0.50.2 on the CPU.

It is no dependency: it takes 125 MB, nearly all of it for GPUs, and PEFT, a reference of other tests, loads it wherever
it is installed. They were made by

    parameter = torch.nn.Parameter(torch.zeros(SHAPE))
    optimizer = bitsandbytes.optim.Adam8bit([parameter], lr=1e-3)
    for step in range(100):
        parameter.grad = torch.from_numpy(gradient(step))
        optimizer.step()

after bitsandbytes.backends.cpu.ops._quant_blockwise_fp32_direct had been made to call the quantisation of its `default`
backend, torch.ops.bitsandbytes.quantize_blockwise.default._op_dk(DispatchKey.CompositeExplicitAutograd, ...). That one
rounds to the nearest level, as the kernels for GPUs do. The one for CPUs looks values up in steps of 3e-5 of their
block's largest, is up to 7 codes off, and so strays further from this path than 32-bit Adam does.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.training.adam_8bit import dequantize, dynamic_levels, quantize, scale_by_adam_8bit
from hgdpo_jax.training.optimizer import make_optimizer

# Above 4096 elements, and no multiple of 256.
SHAPE = (65, 67)
# Every 311th element, the last among them.
GOLDEN = {
    10: [-0.005025605, -0.000360302, -0.003001934, -0.005373423, -0.002513927, -0.00218567, -0.005688296, -0.003148745]
    + [-0.001401789, -0.006273882, -0.004048112, -0.000675881, -0.005950247, -0.004676278, -0.000321467],
    100: [-0.04016605, -0.03645472, -0.039769895, -0.04112112, -0.037810378, -0.0394626, -0.04030819, -0.03816086]
    + [-0.036604203, -0.043671597, -0.039445307, -0.03514521, -0.041449405, -0.042288996, -0.033786435],
}
GOLDEN_MEAN_MAGNITUDE = {10: 0.003437420575, 100: 0.039585675918}


def gradient(step):
    """Magnitudes from 1 to 0.001 in each block."""
    index = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    return (10.0 ** -(index % 4) * (np.cos(0.37 * index + 1.3 * step) + 0.3)).astype(np.float32)


def descend(optimizer, parameters, gradient_at, steps):
    """Parameters after each step, and the last state."""

    @jax.jit
    def step_function(parameters, state, gradients):
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    state, path = optimizer.init(parameters), []
    for step in range(steps):
        parameters, state = step_function(parameters, state, gradient_at(step, parameters))
        path.append(parameters)
    return path, state


@pytest.mark.parametrize(
    ("signed", "digest", "every_51st"),
    [
        (True, "e732639a65f497b4", [-0.99296874, -0.27578127, -0.00634375, 0.00690625, 0.28984374, 1.0]),
        (False, "305f002cc11278fb", [0.0, 0.0067656254, 0.06554688, 0.28632814, 0.6449219, 1.0]),
    ],
)
def test_levels_are_those_of_bitsandbytes_to_the_last_bit(signed, digest, every_51st):
    levels = dynamic_levels(signed)
    assert levels.dtype == np.float32 and levels.shape == (256,)
    np.testing.assert_array_equal(levels[::51], np.float32(every_51st))
    # Of create_dynamic_map(signed).numpy().tobytes().
    assert hashlib.sha256(levels.tobytes()).hexdigest().startswith(digest)


@pytest.mark.parametrize("signed", [True, False])
def test_quantized_value_is_the_nearest_level_times_its_blocks_largest_magnitude(signed):
    levels = dynamic_levels(signed)
    values = np.random.default_rng(0).normal(size=(9, 100)).astype(np.float32) ** (3 if signed else 4)
    values[:3] = 0
    quantized = quantize(jnp.asarray(values), levels)
    assert quantized.codes.dtype == jnp.uint8 and quantized.scales.dtype == jnp.float32
    blocks = np.pad(values.ravel(), (0, 124)).reshape(4, 256)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    assert scales[0] == 0
    distances = np.abs(levels * scales[..., None] - blocks[..., None]).min(axis=-1).ravel()[:900].reshape(9, 100)
    error = np.abs(dequantize(quantized, levels, values.shape) - values)
    np.testing.assert_allclose(error, distances, atol=1e-6 * np.abs(values).max())


def test_trajectory_is_that_of_bitsandbytes():
    optimizer = optax.chain(scale_by_adam_8bit(0.9, 0.999, 1e-8), optax.scale(-1e-3))
    path, _ = descend(optimizer, jnp.zeros(SHAPE), lambda step, _: gradient(step), 100)
    for step, golden in GOLDEN.items():
        # 4e-7 is what all elements keep; steps are of 1e-3.
        np.testing.assert_allclose(path[step - 1].ravel()[::311], golden, rtol=0, atol=1e-6)
        np.testing.assert_allclose(jnp.abs(path[step - 1]).mean(), GOLDEN_MEAN_MAGNITUDE[step], rtol=1e-5)


def test_small_tensors_go_as_with_32_bits_and_large_ones_do_not():
    parameters = {"small": jnp.ones((63, 65)), "large": jnp.ones((64, 64))}
    options = {"learning_rate": 0.01, "warmup_steps": 3, "weight_decay": 0.1}

    def gradient_at(step, parameters):
        return jax.tree.map(lambda x: jax.random.normal(jax.random.key(step), x.shape), parameters)

    (*_, ours), _ = descend(make_optimizer(**options, adam_bits=8), parameters, gradient_at, 20)
    (*_, full), _ = descend(make_optimizer(**options), parameters, gradient_at, 20)
    np.testing.assert_array_equal(ours["small"], full["small"])
    assert 0 < np.abs(ours["large"] - full["large"]).max() < 0.01


def test_state_of_a_large_tensor_takes_a_quarter():
    parameters = jnp.zeros((128, 256))
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(adam.init(parameters)))
        for adam in (scale_by_adam_8bit(), optax.scale_by_adam())
    ]
    assert sizes[0] < 0.26 * sizes[1]


def test_update_compiles_once():
    optimizer, traces = scale_by_adam_8bit(), []

    @jax.jit
    def update(gradients, state):
        traces.append(state)
        return optimizer.update(gradients, state)

    state = optimizer.init(jnp.zeros(SHAPE))
    for step in range(3):
        _, state = update(gradient(step), state)
    assert len(traces) == 1


def test_restored_state_is_the_saved_one_to_the_last_bit(tmp_path):
    optimizer = make_optimizer(learning_rate=0.01, adam_bits=8)
    _, state = descend(optimizer, jnp.zeros(SHAPE), lambda step, _: gradient(step), 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state)
    _, restored = checkpoints.restore(optimizer.init(jnp.zeros(SHAPE)))
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_quadratic_falls_as_with_32_bits():
    # Curvatures of one decade and minima at different places, with a rate that falls to zero.
    index = jnp.arange(np.prod(SHAPE), dtype=jnp.float32).reshape(SHAPE)
    target, curvature = jnp.sin(index), 10.0 ** (jnp.sin(2 * index) / 2)
    losses = {}
    for bits in (8, 32):
        optimizer = make_optimizer(learning_rate=0.05, decay_steps=200, adam_bits=bits)
        path, _ = descend(optimizer, jnp.zeros(SHAPE), lambda _, x: curvature * (x - target), 200)
        losses[bits] = [float(jnp.mean(curvature * (x - target) ** 2)) for x in path]
    np.testing.assert_allclose(losses[8], losses[32], rtol=0.3, atol=1e-3)
    assert losses[8][-1] < 1e-6 * losses[8][0]
