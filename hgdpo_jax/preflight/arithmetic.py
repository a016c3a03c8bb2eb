"""The matrix products of a traced program: what they compute, what they move, and how fast they could be."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core

# Products of [queries, keys] by [head size] in cuDNN's attention: scores and sum; the gradient makes the scores again.
_FUSED_ATTENTION = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


@dataclasses.dataclass(frozen=True)
class Product:
    """A product that a program makes `times` times, or a kernel of several.

    `flops` counts a multiplication with its addition as two; `bytes` are those of operands and result, each once.
    """

    flops: float
    bytes: float
    times: int


def matrix_products(jaxpr: core.Jaxpr, platform: str, times: int = 1) -> Iterator[Product]:
    """All matrix products and convolutions of a traced program, as it runs on `platform` ("cuda" or "tpu").

    What lies in loops counts as often as it runs, what is computed again for the gradient counts again. All else, such
    as norms and softmax, is taken to be fused into them and to cost nothing. Raises ValueError for products in a loop
    whose number of rounds is not known before it runs.
    """
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            yield Product(_dot_flops(equation), _moved(equation), times)
        elif name == "conv_general_dilated":
            yield Product(_convolution_flops(equation), _moved(equation), times)
        elif name in _FUSED_ATTENTION:
            query, key = _shape(equation.invars[0]), _shape(equation.invars[1])
            # [n, tokens, heads, size] and [n, heads, tokens, size] give the same number.
            flops = 2.0 * math.prod(query) * math.prod(key[1:]) / (_heads(equation) * query[-1])
            yield Product(_FUSED_ATTENTION[name] * flops, _moved(equation), times)
        elif name == "pallas_call":
            rounds = math.prod(parameters["grid_mapping"].grid)
            flops = sum(p.flops * p.times for p in matrix_products(parameters["jaxpr"], platform, rounds))
            yield Product(flops, _moved(equation), times)
        elif name == "scan":
            yield from matrix_products(parameters["jaxpr"].jaxpr, platform, times * parameters["length"])
        elif name == "cond":
            yield from _branch_taken(parameters, platform, times)
        elif name == "shard_map":
            # Of the shapes of one device.
            yield from matrix_products(parameters["jaxpr"], platform, times * parameters["mesh"].size)
        else:
            inside = [
                product
                for nested in core.jaxprs_in_params(parameters)
                for product in matrix_products(nested, platform, times)
            ]
            if inside and name == "while":
                raise ValueError("there are matrix products in a loop whose number of rounds is not known")
            yield from inside


def total_flops(products: list[Product]) -> float:
    """Operations of all products."""
    return sum(product.flops * product.times for product in products)


def total_bytes(products: list[Product]) -> float:
    """Bytes that all products read and write."""
    return sum(product.bytes * product.times for product in products)


def roofline_seconds(products: list[Product], peak_flops: float, bandwidth: float) -> float:
    """Least time for the products one after another: of each what takes longer, computing or moving."""
    return sum(max(p.flops / peak_flops, p.bytes / bandwidth) * p.times for p in products)


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution_flops(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    _, inputs, *window = equation.params["dimension_numbers"].rhs_spec
    a_result = 2.0 * kernel[inputs] * math.prod(kernel[i] for i in window)
    # The zeros that the gradient of a strided convolution puts between its operand's elements are no work.
    holes = math.prod(equation.params["lhs_dilation"])
    return math.prod(equation.outvars[0].aval.shape) * a_result / holes


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _heads(equation: Any) -> int:
    shape = equation.invars[0].aval.shape
    return shape[2] if equation.params["layout"] == 0 else shape[1]


def _moved(equation: Any) -> float:
    avals = (variable.aval for variable in (*equation.invars, *equation.outvars))
    return float(sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals if hasattr(aval, "shape")))


def _branch_taken(parameters: Any, platform: str, times: int) -> list[Product]:
    """Of a choice of platform the products of its branch, of another choice those of the branch that has most."""
    branches = [list(matrix_products(branch.jaxpr, platform, times)) for branch in parameters["branches"]]
    for platforms, products in zip(parameters.get("branches_platforms") or (), branches, strict=False):
        if platforms is None or platform in platforms:
            return products
    return max(branches, key=total_flops)
