"""Checks and timings of the full-size programs on one accelerator."""
