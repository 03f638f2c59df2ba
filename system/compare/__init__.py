"""Compares methods at an equal budget: the runs, their results and the page."""
