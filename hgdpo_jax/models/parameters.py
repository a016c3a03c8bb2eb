"""Networks, their configs, and their parameters, which are kept apart from them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax


class NetworkConfig:
    """Base of dataclasses that hold the shape of a network, under the names of a config.json."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a config.json and ignores values that the shape does not depend on."""
        # Subclasses are dataclasses, this base is not, which the type checker cannot know.
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names})


def apply(network: nn.Module, parameters: dict, *arguments, **keywords) -> Any:
    """The network's output for the arguments."""
    return network.apply({"params": parameters}, *arguments, **keywords)


def shapes_of(network: nn.Module, *arguments) -> dict:
    """Shapes of the network's parameters for such arguments, without creating them."""
    # The key within it: outside, it would start JAX's devices, which a plan leaves alone.
    return jax.eval_shape(lambda *given: network.init(jax.random.key(0), *given), *arguments)["params"]
