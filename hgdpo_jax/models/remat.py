"""Rematerialisation: what the backward pass of a module keeps from the forward pass, and what it recomputes."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

REMAT = ("none", "activations", "blocks")

# The checkpoint name of arrays that "activations" keeps, for kernels that name their own.
KEPT = "kept"
keep = functools.partial(checkpoint_name, name=KEPT)

_policies = jax.checkpoint_policies
_POLICIES = {
    "activations": _policies.save_from_both_policies(
        _policies.save_only_these_names(KEPT),
        # The residuals of cuDNN's attention have no name.
        lambda primitive, *_, **__: primitive.name.startswith("dot_product_attention_fwd"),
    ),
    "blocks": _policies.nothing_saveable,
}


def rematerialized(remat: str) -> Callable:
    """Returns a transformation of a module class, or of a function of a module, that keeps less for the backward pass.

    "none" changes nothing: all residuals are kept, several times the size of the results of matrix products, and partly
    in float32. "activations" keeps inputs and what `keep` names, the results of matrix products and attention; norms,
    activations and gates are recomputed. "blocks" keeps only inputs.
    """
    return functools.partial(nn.remat, policy=_POLICIES[remat]) if remat in _POLICIES else lambda target: target
