import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.models.convolution import convolution

# Images with fewer pixels than channels, with more, and with more of so many channels that Winograd's way pays: sides
# that its tiles do not divide.
FEW, MANY, WIDE = (2, 4, 6, 96), (2, 8, 12, 96), (2, 10, 13, 128)


def layer_and_arguments(shape, dtype=jnp.float32, **options):
    random = np.random.default_rng(0)
    layer = convolution(shape[-1] + 8, "layer", dtype, **options)
    x = jnp.asarray(random.normal(size=shape), dtype)
    parameters = layer.init(jax.random.key(0), x)["params"]
    return layer, parameters, x


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel": 1}], ids=["3x3", "stride 2", "1x1"])
@pytest.mark.parametrize("shape", [FEW, MANY, WIDE], ids=["few pixels", "many pixels", "many channels"])
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
    # Sums of 864 or 1,152 products of float32 in another order, or a quarter of them with errors of 4e-6.
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(result, expected.detach().numpy().transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(gradient, images.grad.numpy().transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(gradients["kernel"], kernel.grad.numpy().transpose(2, 3, 1, 0), **close)


def products_and_convolutions(platform, shape, **options):
    layer, parameters, x = layer_and_arguments(shape, **options)
    gradient = jax.jit(jax.grad(lambda x: layer.apply({"params": parameters}, x).sum()))
    program = gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()
    return program.count("stablehlo.dot_general"), program.count("stablehlo.convolution")


@pytest.mark.parametrize(
    ("shape", "options"),
    [(FEW, {}), (MANY, {"kernel": 1}), (WIDE, {})],
    ids=["few pixels", "1x1", "many channels"],
)
def test_on_a_cpu_matrix_products_take_its_place_where_they_are_faster(shape, options):
    products, convolutions = products_and_convolutions("cpu", shape, **options)
    assert products > 0
    assert convolutions == 0


@pytest.mark.parametrize(
    ("platform", "shape", "options"),
    [
        ("cpu", MANY, {}),
        ("cpu", WIDE, {"stride": 2}),
        # Winograd's sums would take 150 MB more.
        ("cpu", (1, 512, 260, 128), {}),
        # They would lose half of these digits.
        ("cpu", WIDE, {"dtype": jnp.bfloat16}),
        *((platform, shape, {}) for platform in ("cuda", "tpu") for shape in (FEW, WIDE)),
    ],
)
def test_elsewhere_a_convolution_is_one(platform, shape, options):
    products, convolutions = products_and_convolutions(platform, shape, **options)
    assert products == 0
    assert convolutions > 0
