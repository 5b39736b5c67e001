"""The image U-Net: attention over few pixels as plain matrix products."""

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from immiscible_policy.network.image import image_unet


def test_attention_over_few_pixels_is_the_fused_kernels():
    """The same numbers and gradients; attention over 16 x 16 pixels stays with the fused kernel."""
    sizes = dict(channels=[8, 8, 8], layers=1, attention=[True, False, True], groups=4, head_channels=4)
    unet = image_unet(16, **sizes, dropout=0.0, layout="diffusers")
    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    fused = [module for module in attentions if isinstance(module.processor, AttnProcessor2_0)]
    assert len(fused) == 3 and len(attentions) == 7  # one down and two up, of one level and of two and the middle
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    results = []
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        for module in set(attentions) - set(fused):
            module.set_processor(processor)
        unet.zero_grad()
        output = unet(x, t).sample
        output.square().sum().backward()
        results.append([output.detach(), *(weight.grad.clone() for weight in unet.parameters())])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
