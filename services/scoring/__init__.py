"""The scoring service: reward models behind Ray Serve."""
