"""Flax modules that families and scorers share, named as their PyTorch originals are."""
