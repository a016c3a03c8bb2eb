"""Ways to compute a float32 convolution on a CPU that are faster there than XLA's own."""
