"""Image generation with immiscible noise: the papers' image experiments, on the same selectors and training loop."""

from immiscible_policy.image.build import build_image_model, load_image_model
from immiscible_policy.image.export import export_diffusers
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.spec import ImageSpec, StableDiffusionSpec
