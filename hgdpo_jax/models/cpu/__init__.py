"""Float32 convolutions that are faster on CPUs than XLA's own."""
