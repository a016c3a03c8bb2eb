"""Encoding images by the autoencoder of a base."""

import jax
import jax.numpy as jnp

from hgdpo_jax.families.model import Model


def make_encode(model: Model):
    """One compiled function `(parameters, pixels) -> moments`."""
    # The standard deviation too: training samples the posterior anew each time it sees an image, as is usual.
    return jax.jit(lambda parameters, pixels: jnp.concatenate(model.posterior(parameters, pixels), axis=-1))


def make_reencode(model: Model):
    """One compiled function `(parameters, latents) -> latents` that decodes and encodes; NaN stays NaN."""

    @jax.jit
    def reencode(parameters, latents):
        # As training, and so the pictures that were scored, sees them: through pixels of whole numbers.
        pixels, decoded = model.decode_checked(parameters, latents)
        # Pixels cannot say that they are none.
        return jnp.where(decoded[:, None, None, None], model.encode(parameters, pixels), jnp.nan)

    return reencode
