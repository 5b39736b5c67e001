"""The commands of `python -m immiscible_policy.demos`."""
