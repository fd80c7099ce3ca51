"""Pictures of what a network attends to and of what pruning has kept."""
