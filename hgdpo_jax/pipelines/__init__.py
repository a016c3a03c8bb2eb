"""The losses of one training step."""
