"""How much better the tuned model is than its base: win rates, colour shift, figures and the report."""
