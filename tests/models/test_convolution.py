import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.models.convolution import convolution

CHANNELS = 96
# Images of 4x6 pixels with fewer pixels than channels, and of 8x12 with more.
FEW, MANY = (2, 4, 6), (2, 8, 12)


def layer_and_arguments(shape, **options):
    random = np.random.default_rng(0)
    layer = convolution(40, "layer", jnp.float32, **options)
    x = jnp.asarray(random.normal(size=(*shape, CHANNELS)), jnp.float32)
    parameters = layer.init(jax.random.key(0), x)["params"]
    return layer, parameters, x


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel": 1}], ids=["3x3", "stride 2", "1x1"])
@pytest.mark.parametrize("shape", [FEW, MANY], ids=["few pixels", "many pixels"])
def test_result_and_gradients_are_those_of_pytorch(shape, options):
    torch = pytest.importorskip("torch")
    layer, parameters, x = layer_and_arguments(shape, **options)
    result, pull_back = jax.vjp(lambda p, x: layer.apply({"params": p}, x), parameters, x)
    direction = np.random.default_rng(1).normal(size=result.shape).astype(np.float32)
    gradients, gradient = pull_back(jnp.asarray(direction))

    def tensor(array, order):
        return torch.tensor(np.asarray(array).transpose(order)).requires_grad_()

    images, kernel = tensor(x, (0, 3, 1, 2)), tensor(parameters["kernel"], (3, 2, 0, 1))
    kernel_size, stride = options.get("kernel", 3), options.get("stride", 1)
    expected = torch.nn.functional.conv2d(images, kernel, stride=stride, padding=kernel_size // 2)
    expected.backward(tensor(direction, (0, 3, 1, 2)).detach())
    # Sums of 864 products of float32, in another order.
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(result, expected.detach().numpy().transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(gradient, images.grad.numpy().transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(gradients["kernel"], kernel.grad.numpy().transpose(2, 3, 1, 0), **close)


def products_and_convolutions(shape, platform, **options):
    layer, parameters, x = layer_and_arguments(shape, **options)
    gradient = jax.jit(jax.grad(lambda x: layer.apply({"params": parameters}, x).sum()))
    program = gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()
    return program.count("stablehlo.dot_general"), program.count("stablehlo.convolution")


@pytest.mark.parametrize(("shape", "options"), [(FEW, {}), (MANY, {"kernel": 1})], ids=["few pixels", "1x1"])
def test_on_a_cpu_few_pixels_and_single_ones_are_a_matrix_product(shape, options):
    products, convolutions = products_and_convolutions(shape, "cpu", **options)
    assert products > 0
    assert convolutions == 0


@pytest.mark.parametrize(("shape", "platform"), [(MANY, "cpu"), (FEW, "cuda"), (FEW, "tpu")])
def test_elsewhere_a_convolution_is_one(shape, platform):
    products, convolutions = products_and_convolutions(shape, platform)
    assert products == 0
    assert convolutions > 0
