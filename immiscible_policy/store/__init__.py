"""Run directories, checkpoints and atomic files: the only place that knows what they are called."""
