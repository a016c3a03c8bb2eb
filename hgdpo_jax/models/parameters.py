"""Networks and their parameters, which are kept apart from them."""

from typing import Any

import flax.linen as nn
import jax


def apply(network: nn.Module, parameters: dict, *arguments, **keywords) -> Any:
    """The network's output for the arguments."""
    return network.apply({"params": parameters}, *arguments, **keywords)


def shapes_of(network: nn.Module, *arguments) -> dict:
    """Shapes of the parameters that the network has for such arguments, without making any."""
    return jax.eval_shape(network.init, jax.random.key(0), *arguments)["params"]
