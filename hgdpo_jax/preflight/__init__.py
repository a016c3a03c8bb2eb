"""The cost of programs on accelerators that are not present: memory, arithmetic, time and price."""
