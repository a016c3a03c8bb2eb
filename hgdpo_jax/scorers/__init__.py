"""Models that say how good an image is, each alone or for its prompt: one file a kind, loaded by `load_scorer`."""
