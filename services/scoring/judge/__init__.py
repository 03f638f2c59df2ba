"""A scorer that asks a vision-language model about each image."""
