"""The reward pool as a service: Ray Serve deployments, an HTTP gateway, a client."""
