"""The toon world, a plugin: procedural portraits of people with exact captions, rendered on demand."""
