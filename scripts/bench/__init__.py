"""Measures the sidecar beside its peers: ``python -m scripts.bench``."""
