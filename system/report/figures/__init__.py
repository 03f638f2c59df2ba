"""The report's figures, one file for each section. Each returns panels: an SVG with its texts, or what is missing."""
