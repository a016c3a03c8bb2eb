"""Families of text-to-image models, a folder each."""
