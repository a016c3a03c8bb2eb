"""How much better the tuned model is than its base: what is measured of images, win rates, colour shift."""
