"""What a program takes on an accelerator that is not there: memory, arithmetic, time and cost."""
