"""The toon world: procedural portraits of people with exact captions, rendered on demand."""
