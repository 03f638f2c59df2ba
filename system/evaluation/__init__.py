"""Compares adapters, checkpoints and the base model on held-out prompts, for `tempflow eval`."""
