"""What happens to a connection: rules compiled for the hook and the data plane."""
