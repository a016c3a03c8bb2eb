"""Stable Diffusion 1.x: its networks, its conditioning, its files."""
