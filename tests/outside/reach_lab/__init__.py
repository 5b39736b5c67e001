"""A task and a selector of somebody else."""
