"""Prompts, image pools and preference pairs."""
