"""Takeover: the sidecar in the application's place, at the registry and in each call."""
