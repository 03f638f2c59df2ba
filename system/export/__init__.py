"""Trained weights of a run as a folder that other programs load and a hub shows."""
