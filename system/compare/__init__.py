"""Methods against each other at an equal budget: the runs, what is kept of them, and the page."""
