"""Optimisers, exponential averages and the one training loop."""
