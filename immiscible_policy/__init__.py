"""Immiscible diffusion for robot policies: noise selectors, PushT, training, paired evaluation."""

__version__ = "0.1.0"
