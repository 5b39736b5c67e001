"""Immiscible diffusion for robot policies: noise selectors, tasks, training, paired evaluation."""

__version__ = "0.1.0"
