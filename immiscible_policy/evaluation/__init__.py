"""Evaluation: rollouts over an explicit list of starts, one row per episode, paired statistics."""
