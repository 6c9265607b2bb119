"""C: the linear policy and its evolution."""
