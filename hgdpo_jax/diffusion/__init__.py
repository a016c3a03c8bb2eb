"""Noise schedule, sampler steps, guidance and latent normalisation: pure functions on arrays."""
