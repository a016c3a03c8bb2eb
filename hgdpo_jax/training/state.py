"""Training states with a moving average of the parameters, and the step that updates them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hgdpo_jax.training.optimizer import update_average


def initial_state(parameters, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Parameters, the optimiser's state, the moving average of the parameters and the number of steps."""
    return {
        "parameters": parameters,
        "optimizer": optimizer.init(parameters),
        # A copy: the step donates its state, and a buffer cannot be donated twice.
        "average": jax.tree.map(jnp.copy, parameters),
        "step": jnp.zeros((), jnp.int32),
    }


def make_step(
    loss_function: Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]],
    optimizer: optax.GradientTransformation,
    *,
    average_decay: float,
    frozen: Any = None,
) -> Callable[[Any, Any], Any]:
    """Compiles a step `(state, batch) -> (state, scalars)` on `loss_function(parameters, frozen, batch)`.

    `frozen` is an argument of the compiled program, not a constant in it. The state's buffers are donated.
    """

    def step(state, frozen, batch):
        (loss, scalars), gradients = jax.value_and_grad(loss_function, has_aux=True)(state["parameters"], frozen, batch)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["parameters"])
        parameters = optax.apply_updates(state["parameters"], updates)
        state = {
            "parameters": parameters,
            "optimizer": optimizer_state,
            "average": update_average(state["average"], parameters, state["step"], average_decay),
            "step": state["step"] + 1,
        }
        return state, {"loss": loss, **scalars, "gradient_norm": optax.tree.norm(gradients)}

    compiled = jax.jit(step, donate_argnums=0)
    return lambda state, batch: compiled(state, frozen, batch)
