"""Data sets of images: CIFAR-10, CelebA, ImageNet, MS-COCO, or any folder.

    images = load_images("cifar10", path)
    images.pixels(rows)     # (B, 3, S, S), uint8
    images.prompts(rows)    # B class names or captions, or None where the set has none

A set whose pixels fit into `MEMORY_BYTES` is read whole; of a larger one, images are read when they are asked for.
"""

from immiscible_policy.image.data.images import Images
from immiscible_policy.image.data.load import DATASETS, MEMORY_BYTES, load_images
from immiscible_policy.image.data.pixels import shrink, to_bytes, to_pixels
