"""What stages, preflight and people call: load, generate, score, one training step on pairs."""
