"""Where images come from, how they are augmented and batched."""
