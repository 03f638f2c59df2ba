"""The training loop's interface to the reward pool."""
