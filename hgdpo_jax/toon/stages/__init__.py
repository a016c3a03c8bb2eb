"""The stages that train the toon world's weights."""
