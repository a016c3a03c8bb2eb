"""What the gradient of a module keeps from the forward pass, and what it makes again."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

REMAT = ("none", "activations", "blocks")

# The mark of arrays that the gradient keeps with "activations", for kernels that mark their own.
KEPT = "kept"
# Marks an array with it.
keep = functools.partial(checkpoint_name, name=KEPT)

_policies = jax.checkpoint_policies
_POLICIES = {
    "activations": _policies.save_from_both_policies(
        _policies.save_only_these_names(KEPT),
        # What the gradient of cuDNN's attention asks for beside its inputs has no name.
        lambda primitive, *_, **__: primitive.name.startswith("dot_product_attention_fwd"),
    ),
    "blocks": _policies.nothing_saveable,
}


def rematerialized(remat: str) -> Callable:
    """What turns a module class, or a function of a module, into one whose gradient keeps less.

    "none" changes nothing: kept is all that a derivative uses, several times as much as the results of matrix products,
    and partly in float32. "activations" keeps inputs and what is marked by `keep`: the results of matrix products and
    attention; norms, activations and gates are made again. "blocks" keeps inputs alone.
    """
    return functools.partial(nn.remat, policy=_POLICIES[remat]) if remat in _POLICIES else lambda target: target
