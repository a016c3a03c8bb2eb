"""The matrix products of a traced program: what they compute, what they move, and how fast they could be."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

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


def matrix_products(jaxpr: core.Jaxpr, platform: str) -> list[Product]:
    """All matrix products and convolutions of a traced program, as it runs on `platform` ("cuda" or "tpu").

    What lies in loops counts as often as it runs, what is computed again for the gradient counts again, unless nothing
    uses it. All else, such as norms and softmax, is taken to be fused into them and to cost nothing. Raises ValueError
    for products in a loop whose number of rounds is not known before it runs.
    """
    # The gradient of a rematerialised kernel makes all its results again on paper, those too that were kept.
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return list(_products(used, platform))


def _products(jaxpr: core.Jaxpr, platform: str, times: int = 1) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            yield Product(_dot_flops(equation), _moved(equation), times)
        elif name == "conv_general_dilated":
            yield Product(_convolution_flops(equation), _moved(equation), times)
        elif name in _FUSED_ATTENTION:
            yield Product(_FUSED_ATTENTION[name] * _scores_flops(equation), _moved(equation), times)
        elif name == "pallas_call":
            rounds = math.prod(parameters["grid_mapping"].grid)
            flops = sum(p.flops * p.times for p in _products(parameters["jaxpr"], platform, rounds))
            yield Product(flops, _moved(equation), times)
        elif name == "scan":
            yield from _products(parameters["jaxpr"].jaxpr, platform, times * parameters["length"])
        elif name == "cond":
            yield from _branch_taken(parameters, platform, times)
        elif name == "shard_map":
            # Of the shapes of one device.
            yield from _products(parameters["jaxpr"], platform, times * parameters["mesh"].size)
        else:
            inside = [
                product
                for nested in core.jaxprs_in_params(parameters)
                for product in _products(nested, platform, times)
            ]
            if inside and name == "while":
                raise ValueError("there are matrix products in a loop whose number of rounds is not known")
            yield from inside


def least_flops(jaxpr: core.Jaxpr, tuned: Sequence[bool]) -> float:
    """Operations that a traced function and its gradient to its `tuned` arguments take at the least.

    Read off the function as it stands, which nobody differentiated: every product is made once, and once more for each
    operand that depends on a tuned argument. So nothing is made again, and frozen weights have no gradient. Of a choice
    of platform the default counts, which has no kernels.
    """
    return _least(jaxpr, tuned)[0]


def _least(jaxpr: core.Jaxpr, tuned: Sequence[bool]) -> tuple[float, list[bool]]:
    """Also which results depend on a tuned argument."""
    depends = dict(zip(jaxpr.invars, tuned, strict=True))
    total = 0.0

    def of(variables):
        return [not isinstance(variable, core.Literal) and depends.get(variable, False) for variable in variables]

    for equation in jaxpr.eqns:
        name, parameters, given = equation.primitive.name, equation.params, of(equation.invars)
        inside, found = list(core.jaxprs_in_params(parameters)), [any(given)] * len(equation.outvars)
        if name == "dot_general":
            total += _dot_flops(equation) * (1 + sum(given))
        elif name == "conv_general_dilated":
            total += _convolution_flops(equation) * (1 + sum(given))
        elif name == "scan":
            # What one round makes of a tuned argument the next one reads.
            carried, count = _carried(equation, inside[0])
            for _ in range(count):
                found = _least(inside[0], given)[1]
                given[carried] = [a or b for a, b in zip(given[carried], found[:count], strict=True)]
            flops, found = _least(inside[0], given)
            total += parameters["length"] * flops
        elif name == "cond":
            flops, found = _least(_branch_of(parameters) or inside[0], given[1:])
            total += flops
        elif inside and name != "while":
            # Products in a loop whose number of rounds is not known are refused by `matrix_products`.
            (nested,) = inside
            flops, found = _least(nested, given)
            total += flops
        depends |= dict(zip(equation.outvars, found, strict=True))
    return total, of(jaxpr.outvars)


def _carried(equation: Any, body: core.Jaxpr) -> tuple[slice, int]:
    """Which operands of a scan are carried from one round to the next, and how many: they come first in its results.

    Read off the shapes, because JAX's versions name the numbers differently: what a round takes a slice of has one
    axis more outside the loop, and so have the results that are stacked.
    """

    def unstacked(outside, inside):
        return sum(len(_shape(a)) == len(_shape(b)) for a, b in zip(outside, inside, strict=True))

    count = unstacked(equation.outvars, body.outvars)
    behind = unstacked(equation.invars, body.invars)
    return slice(behind - count, behind), count


def total_flops(products: list[Product]) -> float:
    """Operations of all products."""
    return sum(product.flops * product.times for product in products)


def total_bytes(products: list[Product]) -> float:
    """Bytes that all products read and write."""
    return sum(product.bytes * product.times for product in products)


def roofline_seconds(products: list[Product], peak_flops: float, bandwidth: float) -> float:
    """Least time for the products one after another: of each what takes longer, computing or moving."""
    return sum(max(p.flops / peak_flops, p.bytes / bandwidth) * p.times for p in products)


def _scores_flops(equation: Any) -> float:
    """Of one product of a fused attention's queries and keys."""
    query, key = _shape(equation.invars[0]), _shape(equation.invars[1])
    # [n, tokens, heads, size] and [n, heads, tokens, size] give the same number.
    return 2.0 * math.prod(query) * math.prod(key[1:]) / (_heads(equation) * query[-1])


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
    branch = _branch_of(parameters, platform)
    if branch is not None:
        return list(_products(branch, platform, times))
    branches = [list(_products(branch.jaxpr, platform, times)) for branch in parameters["branches"]]
    return max(branches, key=total_flops)


def _branch_of(parameters: Any, platform: str | None = None) -> core.Jaxpr | None:
    """A platform's branch, or the default, where it is the platform that chooses."""
    for platforms, branch in zip(parameters.get("branches_platforms") or (), parameters["branches"], strict=False):
        if platforms is None or platform in platforms:
            return branch.jaxpr
    return None
