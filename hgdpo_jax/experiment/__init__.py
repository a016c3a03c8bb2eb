"""What stages share: an experiment's models, prompts and scorers, and drawing, scoring and training with them."""
