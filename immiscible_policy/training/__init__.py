"""Training: one loop, exact checkpoints, EMA, metrics, several seeds."""
