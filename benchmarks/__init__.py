"""Timings beside PyTorch on the same machine: `make bench`. Nothing here is a test."""
