"""Counting the matrix products of traced programs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from hgdpo_jax.families.stable_diffusion.unet import UNet, UNetConfig
from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.remat import keep, rematerialized
from hgdpo_jax.preflight.arithmetic import least_flops, matrix_products, roofline_seconds, total_bytes, total_flops


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def products(function, *arguments, platform="cuda"):
    return matrix_products(jax.make_jaxpr(function)(*arguments).jaxpr, platform)


def flops(function, *arguments, platform="cuda"):
    return total_flops(products(function, *arguments, platform=platform))


def convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def test_a_product_of_matrices_takes_two_operations_for_each_multiplication():
    assert flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    assert flops(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), shape(4, 3, 5), shape(4, 7, 5)) == 2 * 4 * 3 * 5 * 7


def test_bytes_are_those_of_operands_and_result_in_their_types():
    found = products(jnp.matmul, shape(3, 5, dtype=jnp.bfloat16), shape(5, 7, dtype=jnp.bfloat16))
    assert total_bytes(found) == 2 * (3 * 5 + 5 * 7 + 3 * 7)


def test_a_convolution_takes_its_window_times_its_channels_for_each_result():
    assert flops(convolve, shape(2, 8, 6, 3), shape(3, 3, 3, 5)) == 2 * (2 * 8 * 6 * 5) * 9 * 3
    strided = functools.partial(convolve, stride=2)
    assert flops(strided, shape(2, 8, 6, 3), shape(3, 3, 3, 5)) == 2 * (2 * 4 * 3 * 5) * 9 * 3
    grouped = functools.partial(convolve, groups=3)
    assert flops(grouped, shape(2, 8, 6, 3), shape(3, 3, 1, 6)) == 2 * (2 * 8 * 6 * 6) * 9


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_gradient_takes_twice_as_much_as_its_convolution(stride, groups):
    forward = functools.partial(convolve, stride=stride, groups=groups)
    arguments = shape(2, 8, 6, 3), shape(3, 3, 3 // groups, 6)
    both = jax.value_and_grad(lambda *x: forward(*x).sum(), argnums=(0, 1))
    assert flops(both, *arguments) == 3 * flops(forward, *arguments)


def test_what_lies_in_a_loop_counts_as_often_as_it_runs():
    def repeated(x):
        return jax.lax.scan(lambda x, _: (jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x), None), x, length=7)[0]

    assert flops(repeated, shape(5, 5)) == 7 * 3 * 2 * 5**3


def test_products_in_a_loop_without_a_known_end_are_refused():
    def until_large(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="rounds"):
        flops(until_large, shape(5, 5))


def test_a_loop_without_a_known_end_and_without_products_costs_nothing():
    assert flops(lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x + 1, x), shape()) == 0


def test_what_is_computed_again_for_the_gradient_counts_again():
    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w)

    def gradient(function):
        return jax.value_and_grad(lambda x, w: function(x, w).sum(), argnums=(0, 1))

    one = 2 * 5**3
    arguments = shape(5, 5), shape(5, 5)
    assert flops(gradient(layer), *arguments) == 6 * one
    assert flops(gradient(jax.checkpoint(layer)), *arguments) == 8 * one


def test_what_nothing_uses_costs_nothing():
    def first(x):
        return jax.checkpoint(lambda x: (jnp.sin(x), x @ x))(x)[0]

    assert flops(first, shape(5, 5)) == 0


def test_functions_with_their_own_gradient_and_jitted_ones_are_looked_into():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    assert flops(jax.jit(product), shape(5, 5)) == 2 * 5**3
    assert flops(jax.jit(jax.value_and_grad(lambda x: product(x).sum())), shape(5, 5)) == 3 * 2 * 5**3


def test_of_a_choice_of_platform_the_branch_of_the_target_counts():
    def chosen(x):
        return jax.lax.platform_dependent(x, cuda=lambda x: x @ x @ x, default=lambda x: x @ x)

    assert flops(chosen, shape(5, 5), platform="cuda") == 2 * 2 * 5**3
    assert flops(chosen, shape(5, 5), platform="tpu") == 2 * 5**3


def test_of_a_choice_at_run_time_the_larger_branch_counts():
    def chosen(yes, x):
        return jax.lax.cond(yes, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops(chosen, shape(dtype=jnp.bool_), shape(5, 5)) == 2 * 2 * 5**3


def test_what_runs_on_every_device_of_a_mesh_counts_for_each():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    rows = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows)
    assert flops(mapped, shape(4, 5)) == 2 * 4 * 4 * 5


def test_a_pallas_kernel_counts_once_for_each_place_of_its_grid():
    from jax.experimental import pallas as pl

    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    def product(x, y):
        return pl.pallas_call(
            kernel,
            jax.ShapeDtypeStruct((64, 16), jnp.float32),
            grid=(4,),
            in_specs=[pl.BlockSpec((16, 8), lambda i: (i, 0)), pl.BlockSpec((8, 16), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((16, 16), lambda i: (i, 0)),
        )(x, y)

    found = products(product, shape(64, 8), shape(8, 16))
    assert total_flops(found) == 2 * 64 * 8 * 16
    assert total_bytes(found) == 4 * (64 * 8 + 8 * 16 + 64 * 16)


class Attention(nn.Module):
    def __call__(self, query, key, value):
        return attention(keep(query), keep(key), keep(value), heads=8)


@pytest.mark.parametrize("remat", ["none", "activations"])
def test_the_scores_of_a_tpus_attention_are_made_once_more_for_the_gradient_and_never_moved(remat):
    tokens = shape(1, 1024, 320, dtype=jnp.bfloat16)
    attend = functools.partial(rematerialized(remat)(Attention)().apply, {})
    gradient = jax.grad(lambda *x: jnp.square(attend(*x)).sum(), argnums=(0, 1, 2))
    one, scores = 2 * 1024 * 1024 * 320, 8 * 1024 * 1024
    for function, count in ((attend, 2), (gradient, 7)):
        found = products(function, tokens, tokens, tokens, platform="tpu")
        # Results are multiplied with their gradient, and summed, besides.
        assert total_flops(found) == pytest.approx(count * one, rel=1e-3)
        assert total_bytes(found) < 2 * scores


def test_the_roofline_is_what_takes_longer_of_computing_and_moving_for_each_product():
    def both(x, vector):
        return x @ x, x @ vector

    found = products(both, shape(100, 100), shape(100, 1))
    computing, moving = 2 * 100**3 / 1e6, 4 * (100 * 100 + 100 + 100) / 1e4
    assert roofline_seconds(found, peak_flops=1e6, bandwidth=1e4 * 10) == pytest.approx(computing + moving / 10)


def least(function, *arguments, tuned):
    return least_flops(jax.make_jaxpr(function)(*arguments).jaxpr, tuned)


def test_the_least_for_a_gradient_is_one_product_more_for_each_operand_that_a_tuned_argument_reaches():
    def layers(down, up, w, x):
        first = jnp.tanh(x @ w)
        second = jnp.tanh(first @ w + (first @ down) @ up)
        return jnp.tanh(second @ w)

    arguments = shape(5, 2), shape(2, 5), shape(5, 5), shape(3, 5)
    whole, low_rank = 2 * 3 * 5 * 5, 2 * 3 * 5 * 2
    # The first two products with w need no gradient, the third one needs that of its input; `down` meets a frozen
    # input, `up` one that is tuned.
    expected = 3 * whole + whole + low_rank * 2 + low_rank * 3
    assert least(layers, *arguments, tuned=[True, True, False, False]) == expected
    assert least(layers, *arguments, tuned=[False] * 4) == flops(layers, *arguments)
    gradient = jax.value_and_grad(lambda *x: layers(*x).sum(), argnums=(0, 1))
    assert flops(gradient, *arguments) == expected


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: lambda x, w: jax.lax.cond(True, f, f, x, w)])
def test_the_least_of_a_gradient_looks_into_functions_and_counts_nothing_twice(wrap):
    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w)

    one, arguments = 2 * 5**3, (shape(5, 5), shape(5, 5))
    assert least(wrap(layer), *arguments, tuned=[True, True]) == 6 * one
    assert least(wrap(layer), *arguments, tuned=[True, False]) == 4 * one
    assert least(wrap(layer), *arguments, tuned=[False, True]) == 5 * one


def test_the_least_of_a_loop_is_that_of_all_its_rounds_once_a_tuned_argument_has_reached_what_is_carried():
    def repeated(x, w, scale):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w) * scale, None), x, length=7)[0]

    one, arguments = 2 * 5**3, (shape(5, 5), shape(5, 5), shape())
    assert least(repeated, *arguments, tuned=[True, False, False]) == 2 * 7 * one
    assert least(repeated, *arguments, tuned=[False, False, True]) == 2 * 7 * one


@pytest.mark.parametrize(("height", "width", "teraflops"), [(512, 512, 0.80), (1024, 704, 2.79)])
def test_a_forward_of_stable_diffusion_takes_what_is_known_of_it(height, width, teraflops):
    unet = UNet(UNetConfig(), jnp.bfloat16)
    inputs = shape(1, height // 8, width // 8, 4), shape(1, dtype=jnp.int32), shape(1, 77, 768)
    parameters = jax.eval_shape(unet.init, jax.random.key(0), *inputs)
    assert flops(unet.apply, parameters, *inputs) / 1e12 == pytest.approx(teraflops, abs=0.005)
