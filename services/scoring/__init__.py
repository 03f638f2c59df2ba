"""The reward models (scorers), which Ray Serve runs."""
