"""The miscibility laboratory: what each selector does to the noise, to the denoiser and to what it generates.

`python -m immiscible_policy.lab NAME [KEY=VALUE ...]` runs one experiment and writes its figures (JSON), its
picture (PNG) and its text (Markdown). The statistics are those of `immiscible_policy.noise.audit`.
"""
