"""Immiscible noise in other people's trainers, and their checkpoints here.

    scheduler          a context in which a diffusers noise scheduler adds chosen noise
    draws              a context in which code that draws its own noise is given chosen noise
    diffusion_policy   the policies of the original Diffusion Policy
    torchcfm           an object in the place of torchcfm's OTPlanSampler

These four need no more than the selectors do. docs/plugins.md shows each in use, examples/ runs them.

    bridge             opens and writes checkpoints: ours, Diffusion Policy's `.ckpt`, LeRobot's directories
"""
