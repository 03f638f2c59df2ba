"""The model families: one file each, what they share, and the registry that finds the family of a model."""
