"""Low-rank adapters of a denoiser and its text encoders, which do not know of them.

An adapter is `{layer's path: {"down": [in, rank], "up": [rank, out]}}` in float32 with alpha equal to the rank: it adds
`x @ down @ up * scale` to the output of the linear layer, or 1x1 convolution, at that path of the denoiser, such as
`down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`. Paths of a text encoder begin with the encoder's name.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import some

# Beyond it a trained LoRA draws noise.
LARGEST_SCALE = 4.0

Adapter = Mapping[str, Mapping[str, jax.Array]]


def find_layers(params: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Path of every linear layer and 1x1 convolution of a parameter tree, with its input and output width."""
    kernels = {".".join(path): leaf.shape for (*path, name), leaf in flatten_dict(params).items() if name == "kernel"}
    return {path: shape[-2:] for path, shape in kernels.items() if all(length == 1 for length in shape[:-2])}


def within(adapter: Adapter, network: str) -> Adapter:
    """The entries of an adapter whose paths begin with the name of a network, under paths without that name."""
    prefix = f"{network}."
    return {path.removeprefix(prefix): entry for path, entry in adapter.items() if path.startswith(prefix)}


def initialize(key: jax.Array, targets: Mapping[str, tuple[int, int]], rank: int) -> dict[str, dict[str, jax.Array]]:
    """A fresh adapter that changes nothing: down ~ N(0, 1/rank^2), up = 0 (diffusers' DPO example)."""
    adapter = {}
    for index, (path, (inputs, outputs)) in enumerate(sorted(targets.items())):
        down = jax.random.normal(jax.random.fold_in(key, index), (inputs, rank)) / rank
        adapter[path] = {"down": down, "up": jnp.zeros((rank, outputs))}
    return adapter


def check(adapter: Adapter, targets: Mapping[str, tuple[int, int]]) -> None:
    """Raises UserError unless every entry of the adapter fits one of `targets`, paths with input and output width."""
    if unknown := sorted(set(adapter) - set(targets)):
        raise UserError(
            f"the adapter changes {some(unknown)}, which this model does not have as a linear "
            "layer: give an adapter of its family"
        )
    for path, entry in adapter.items():
        found = (entry["down"].shape[0], entry["up"].shape[1])
        if found != tuple(targets[path]):
            raise UserError(
                f"the adapter maps {found[0]} to {found[1]} channels at {path}, expected {targets[path][0]} to "
                f"{targets[path][1]}: give an adapter of this model's family"
            )


def apply(adapters: Sequence[tuple[Adapter, float | jax.Array]]) -> AbstractContextManager:
    """Context in which linear layers and 1x1 convolutions add the branches of `adapters`, pairs of adapter and scale.

    It acts while modules are called or traced, so it belongs inside a jitted function. Paths are relative to the module
    that is applied. An entry that matches no layer is ignored: call `check` first.
    """

    def intercept(next_call, arguments, keywords, context):
        output = next_call(*arguments, **keywords)
        module = context.module
        if context.method_name != "__call__" or not (isinstance(module, nn.Dense) or _is_pointwise(module)):
            return output
        path = ".".join(module.path)
        for adapter, scale in adapters:
            if path in adapter:
                # The small factors are float32 until here; only their products with activations are rounded.
                down = adapter[path]["down"].astype(output.dtype)
                up = (adapter[path]["up"] * scale).astype(output.dtype)
                output = output + (arguments[0].astype(output.dtype) @ down) @ up
        return output

    return nn.intercept_methods(intercept)


def merge(params: Mapping[str, Any], adapter: Adapter, scale: float | jax.Array) -> dict[str, Any]:
    """Parameters with the adapter added to the kernels it changes; raises UserError where it does not fit."""
    check(adapter, find_layers(params))
    merged = flatten_dict(params)
    for key, kernel in merged.items():
        if key[-1] == "kernel" and (entry := adapter.get(".".join(key[:-1]))):
            change = jnp.matmul(entry["down"], entry["up"], precision=jax.lax.Precision.HIGHEST) * scale
            merged[key] = (kernel.astype(jnp.float32) + change.reshape(kernel.shape)).astype(kernel.dtype)
    return unflatten_dict(merged)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv) and module.kernel_size == (1, 1)
