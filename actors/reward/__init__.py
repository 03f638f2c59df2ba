"""The reward pool as the training loop sees it."""
