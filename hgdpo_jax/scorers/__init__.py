"""Models that score images, alone or for their prompts: one file per kind, found by `sources.py`."""
