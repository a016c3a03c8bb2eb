"""Flax modules of the Stable Diffusion 1.5 family and of CLIP, named as their PyTorch originals are."""
