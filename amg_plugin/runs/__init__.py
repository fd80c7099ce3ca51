"""What the commands carry out, from a configuration to a result."""
