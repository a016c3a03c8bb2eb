"""Programs compiled for hardware that is not there; for the targets whose compilers are installed."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest

from hgdpo_jax.models.attention import attention
from hgdpo_jax.preflight.apart import compiler_environment, run_apart
from hgdpo_jax.preflight.compilation import Program, measure
from hgdpo_jax.preflight.targets import CHIPS, parse_target, target_devices
from hgdpo_jax.sharding import batch_shapes, replicated_shapes

MODULES = {"cuda": "jax_cuda12_plugin", "tpu": "libtpu"}
ROWS, WIDTH = 2048, 4096


def multiply(devices, chip, rows):
    """What `rows` rows a device, squashed, times a square matrix take."""

    def build(mesh):
        weights = replicated_shapes(jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32), mesh)
        batch = batch_shapes(jax.ShapeDtypeStruct((rows * mesh.size, WIDTH), jnp.float32), mesh)
        function = jax.jit(lambda weights, batch: jnp.tanh(batch) @ weights)
        return Program(function, (weights, batch), weights=weights)

    return measure(build, devices, chip)


def multiply_on(target, rows):
    return multiply(target_devices(target), target.chip, rows)


def attend_on(target, tokens, channels):
    """What attention among the tokens of an image a device takes, with its gradients."""

    def build(mesh):
        rows = batch_shapes(jax.ShapeDtypeStruct((mesh.size, tokens, channels), jnp.bfloat16), mesh)
        gradient = jax.grad(lambda *x: jnp.square(attention(*x, heads=8)).sum(), argnums=(0, 1, 2))
        return Program(jax.jit(gradient), (rows, rows, rows))

    return measure(build, target_devices(target), target.chip)


@pytest.fixture(params=["a100-40gb:1", "a100-80gb:4", "h100:16", "v4:4", "v5e:1", "v5e:8", "v5p:16", "v6e:4"])
def target(request):
    found = parse_target(request.param)
    # The compilers are extras of hundreds of megabytes that nothing else needs, so the suite does without them.
    if importlib.util.find_spec(MODULES[found.chip.platform]) is None:
        pytest.skip(f"no compiler for {found.name}")
    return found


def test_there_are_as_many_devices_as_were_asked_for(target):
    assert run_apart(compiler_environment(target), _count, target) == target.count


def test_a_program_is_compiled_for_absent_devices(target):
    found = run_apart(compiler_environment(target), multiply_on, target, ROWS)
    assert found.fits
    assert found.weight_bytes == 4 * WIDTH**2
    assert found.peak_bytes >= 4 * (WIDTH**2 + 2 * ROWS * WIDTH)
    assert found.flops == 2 * ROWS * WIDTH**2


def test_a_program_larger_than_the_memory_does_not_fit_and_says_what_it_needs(target):
    rows = target.chip.memory_bytes // (4 * WIDTH)
    found = run_apart(compiler_environment(target), multiply_on, target, rows)
    assert not found.fits
    assert found.peak_bytes > target.chip.memory_bytes


@pytest.mark.parametrize("target", ["v4:4", "v5e:1"], indirect=True)
# The first and the third level at 704x1024, and the longest blocks, padded, with heads of 80 and of 128.
@pytest.mark.parametrize(("tokens", "channels"), [(11264, 320), (704, 1280), (2772, 8 * 80), (2772, 8 * 128)])
def test_attention_on_a_tpu_fits_its_on_chip_memory_and_makes_scores_once_more(target, tokens, channels):
    found = run_apart(compiler_environment(target), attend_on, target, tokens, channels)
    assert found.fits
    # Sums of rows, which the traced program has as products, are none in the compiled one.
    assert found.compiled.flops == pytest.approx(found.flops, rel=2e-3)
    assert found.compiled.flops >= 7 * 2 * tokens**2 * channels
    assert found.compiled.float32_products == {}


def test_memory_of_this_machine_is_measured_as_that_of_a_target():
    chip = dataclasses.replace(CHIPS["a100-80gb"], platform="cpu")
    few, many = (multiply(jax.devices()[:1], chip, rows) for rows in (ROWS, 2 * ROWS))
    assert few.fits
    assert few.weight_bytes == many.weight_bytes == 4 * WIDTH**2
    assert many.temporary_bytes > 1.9 * few.temporary_bytes


def _count(target):
    return len(target_devices(target))
