"""Learning: the gradient loop of V and M, the evolution of C."""
