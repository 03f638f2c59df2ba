"""Kubernetes manifests of a run and its reward pool: pure functions of a recipe and an infrastructure file."""
