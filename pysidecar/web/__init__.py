"""What HTTP interfaces of the sidecar have in common, whatever they serve."""
