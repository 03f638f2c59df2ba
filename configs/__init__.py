"""Recipes that come with tempflow, found by name."""
