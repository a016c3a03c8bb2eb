"""Joins the evaluations of many runs into the tables and figures of the paper: `python -m hgdpo_jax.report`."""
