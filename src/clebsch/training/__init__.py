"""Training: configuration, loss, optimiser, loop, exact state."""
