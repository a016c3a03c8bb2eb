"""The matrix products of a traced program: what they compute, what they move, and how fast they could be."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product, or a kernel of several, that a program computes `times` times.

    `flops` counts a multiplication and its addition as two; `bytes` are those of operands and result, each once.
    """

    flops: float
    bytes: float
    times: int


def matrix_products(jaxpr: core.Jaxpr, platform: str) -> list[Product]:
    """All matrix products and convolutions of a traced program, as it runs on `platform` ("cuda" or "tpu").

    Products in loops count as often as they run, and rematerialised ones count again unless nothing uses them. All
    else, such as norms and softmax, is assumed to be fused into them at no cost. Raises ValueError for products in a
    loop whose number of rounds is not known before it runs.
    """
    # The gradient of a rematerialised kernel recomputes all its results in the trace, even those that were kept.
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _products(used, platform, [False] * len(used.invars))[0]


def least_flops(jaxpr: core.Jaxpr, tuned: Sequence[bool]) -> float:
    """The fewest operations that a traced function and its gradient to its `tuned` arguments take.

    The function is traced without its gradient: every product counts once, and once more for each operand that depends
    on a tuned argument. So nothing is rematerialised, and frozen weights have no gradient. Where the platform chooses a
    branch, the default counts, which has no kernels.
    """
    return total_flops(_products(jaxpr, None, tuned)[0])


def total_flops(products: Sequence[Product]) -> float:
    """Operations of all products."""
    return sum(product.flops * product.times for product in products)


def total_bytes(products: Sequence[Product]) -> float:
    """Bytes that all products read and write."""
    return sum(product.bytes * product.times for product in products)


def roofline_seconds(products: Sequence[Product], peak_flops: float, bandwidth: float) -> float:
    """Least time for the products one after another: for each, the longer of computing and moving."""
    return sum(max(p.flops / peak_flops, p.bytes / bandwidth) * p.times for p in products)


def _products(
    jaxpr: core.Jaxpr, platform: str | None, tuned: Sequence[bool], times: int = 1
) -> tuple[list[Product], list[bool]]:
    """The products of a function that runs `times` times, and which of its results depend on a tuned argument.

    A product counts once more for each operand that does.
    """
    depends = dict(zip(jaxpr.invars, tuned, strict=True))
    products: list[Product] = []

    def of(variables):
        return [not isinstance(variable, core.Literal) and depends.get(variable, False) for variable in variables]

    for equation in jaxpr.eqns:
        name, parameters, given = equation.primitive.name, equation.params, of(equation.invars)
        reached = [any(given)] * len(equation.outvars)

        def within(nested, times, given=given):
            # The arguments of a loop's parts and of a kernel are not the equation's operands one by one.
            alike = given if len(given) == len(nested.invars) else [any(given)] * len(nested.invars)
            return _products(nested, platform, alike, times)

        if name in _FLOPS:
            products.append(Product(_FLOPS[name](equation), _moved(equation), times * (1 + sum(given))))
        elif name == "pallas_call":
            kernel, _ = within(parameters["jaxpr"], math.prod(parameters["grid_mapping"].grid))
            products.append(Product(total_flops(kernel), _moved(equation), times))
        elif name == "scan":
            body = parameters["jaxpr"].jaxpr
            carried = _carried(equation, body)
            while True:
                found, reached = within(body, times * parameters["length"])
                # What one round computes from a tuned argument, the next one reads.
                carry = [a or b for a, b in zip(given[carried], reached, strict=False)]
                if carry == given[carried]:
                    break
                given[carried] = carry
            products += found
        elif name == "cond":
            branches = [_products(branch, platform, given[1:], times) for branch in _branches(parameters, platform)]
            found, reached = max(branches, key=lambda branch: total_flops(branch[0]))
            products += found
        else:
            for nested in core.jaxprs_in_params(parameters):
                # In a shard_map, shapes are those of one device.
                found, results = within(nested, times * (parameters["mesh"].size if name == "shard_map" else 1))
                if found and name == "while":
                    raise ValueError("there are matrix products in a loop whose number of rounds is not known")
                reached = results if len(results) == len(reached) else reached
                products += found
        depends |= dict(zip(equation.outvars, reached, strict=True))
    return products, of(jaxpr.outvars)


def _carried(equation: Any, body: core.Jaxpr) -> slice:
    """Which operands of a scan are carried from one round to the next; the results begin with theirs.

    This is derived from the shapes, because JAX's versions name the numbers differently: what a round takes a slice of
    has one axis more outside the loop, and so have the results that are stacked.
    """

    def unstacked(outside, inside):
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outside, inside, strict=True))

    end = unstacked(equation.invars, body.invars)
    return slice(end - unstacked(equation.outvars, body.outvars), end)


def _branches(parameters: Any, platform: str | None) -> list[core.Jaxpr]:
    """The branch of a platform, or the default, where the platform chooses; otherwise all branches."""
    for platforms, branch in zip(parameters.get("branches_platforms") or (), parameters["branches"], strict=False):
        if platforms is None or platform in platforms:
            return [branch.jaxpr]
    return [branch.jaxpr for branch in parameters["branches"]]


def _moved(equation: Any) -> float:
    avals = (variable.aval for variable in (*equation.invars, *equation.outvars))
    return float(sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals if hasattr(aval, "shape")))


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution_flops(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    _, inputs, *window = equation.params["dimension_numbers"].rhs_spec
    per_result = 2.0 * kernel[inputs] * math.prod(kernel[i] for i in window)
    # The zeros that the gradient of a strided convolution puts between its operand's elements are no work.
    holes = math.prod(equation.params["lhs_dilation"])
    return math.prod(equation.outvars[0].aval.shape) * per_result / holes


def _attention_flops(products: int, equation: Any) -> float:
    """Of so many products of [queries, keys] by [head size] in cuDNN's attention."""
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    # [n, tokens, heads, size], or [n, heads, tokens, size].
    heads = query[2 if equation.params["layout"] == 0 else 1]
    return products * 2.0 * math.prod(query) * math.prod(key[1:]) / (heads * query[-1])


_FLOPS: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot_flops,
    "conv_general_dilated": _convolution_flops,
    # Scores and sum; the gradient recomputes the scores.
    "dot_product_attention_fwd_wrapper": functools.partial(_attention_flops, 2),
    "dot_product_attention_bwd_wrapper": functools.partial(_attention_flops, 5),
}
