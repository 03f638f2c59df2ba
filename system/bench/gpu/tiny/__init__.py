"""A tiny random pipeline of each family, through the real classes of diffusers and transformers."""
