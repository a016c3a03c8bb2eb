"""Low-rank adapters, which the models know nothing of."""
