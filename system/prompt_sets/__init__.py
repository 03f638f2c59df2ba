"""Small held-out sets of our own prompts, for `eval.sets`."""
