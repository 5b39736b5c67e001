"""What a policy sees in pictures: a ResNet-18 and a spatial softmax for each camera.

The network is that of Diffusion Policy (Chi et al., RSS 2023), which takes it from robomimic (Mandlekar et al., 2021):

    crop -> ResNet-18 (GroupNorm for BatchNorm, no pooling at its end) -> 1x1 convolution to 32 maps
         -> spatial softmax: the mean place of each map, 64 numbers -> linear to 64 -> ReLU

The ResNet-18 is torchvision's, layer by layer and name by name, so that its weights can be exchanged; it is written
out here because torchvision's has no width, and its wheels do not load beside every build of PyTorch.

Shape legend: B samples, O observation steps, K cameras, H and W height and width, Do other numbers per observation.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from immiscible_policy.network.crop import center_crop

KEYPOINTS = 32
"""Maps of the spatial softmax."""
FEATURES = 64
"""Numbers per frame that a camera's network gives."""
CHANNELS_PER_GROUP = 16


@dataclass(frozen=True)
class EncoderSpec:
    """What shapes an encoder; plain values, so that it is stored as JSON.

    Raises ValueError if there is no camera, one is named twice, or a number is out of range.
    """

    cameras: tuple[str, ...] = ("img",)  # their names, in the order of the images
    crop: int = 84  # side of the square that is seen [px]
    width: int = 64  # channels of the ResNet's first stage; 64 is a ResNet-18
    shared: bool = False  # whether one network serves all cameras, instead of one for each
    resize: tuple[int, int] | None = None  # height and width that frames are scaled to before the crop

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras={list(self.cameras)}: needs one name or more, all different")
        if self.crop < 1:
            raise ValueError(f"crop={self.crop}: needs 1 or more pixels")
        if self.width < 1 or self.width % CHANNELS_PER_GROUP:
            raise ValueError(f"encoder_width={self.width}: needs a multiple of {CHANNELS_PER_GROUP}")

    def features(self, agent_dim: int) -> int:
        """Numbers that an encoder makes of one observation step."""
        return FEATURES * len(self.cameras) + agent_dim


class ImageEncoder(nn.Module):
    """Features of an observation: those of each camera's frames, then the numbers that need no encoding."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.crop = spec.crop
        self.cameras = spec.cameras
        names = ("shared",) if spec.shared else spec.cameras
        self.obs_nets = nn.ModuleDict({name.replace(".", "/"): CameraNetwork(spec.width) for name in names})

    def forward(self, agent: Tensor, images: Tensor) -> Tensor:
        """Encode normalised numbers (B, O, Do) and frames (B, O, K, H, W, 3) uint8, cropped already or larger.

        Of larger frames the middle is seen. Returns features (B, O * (64 K + Do)), step after step.
        """
        pixels = to_channels_first(center_crop(images, self.crop))
        networks = list(self.obs_nets.values()) * (len(self.cameras) // len(self.obs_nets))
        frames = [network(pixels[:, :, i].flatten(0, 1)).float() for i, network in enumerate(networks)]
        features = [frame.unflatten(0, agent.shape[:2]) for frame in frames]
        return torch.cat([*features, agent], dim=-1).flatten(1)


class CameraNetwork(nn.Module):
    """Features of one camera's frames; `width` channels in the ResNet's first stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = ResNet18(width)
        self.keypoints = nn.Conv2d(8 * width, KEYPOINTS, 1)
        self.linear = nn.Linear(2 * KEYPOINTS, FEATURES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) of -1..1 to features (N, 64)."""
        places = spatial_softmax(self.keypoints(self.backbone(pixels)))
        return torch.relu(self.linear(places.flatten(1)))


class ResNet18(nn.Sequential):
    """The convolutions of a ResNet-18 (He et al., 2016) with GroupNorm (Wu and He, 2018): 1/32 of the resolution.

    Names of modules and initialisation are torchvision's. The first stage has `width` channels, 64 in a ResNet-18; the
    others have 2, 4 and 8 times as many.
    """

    def __init__(self, width: int = 64) -> None:
        stages = {
            f"layer{i + 1}": nn.Sequential(
                ResidualBlock(width * max(1, 2**i // 2), width * 2**i, stride=1 if i == 0 else 2),
                ResidualBlock(width * 2**i, width * 2**i),
            )
            for i in range(4)
        }
        stem = {
            "conv1": nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            "bn1": norm(width),
            "relu": nn.ReLU(inplace=True),
            "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
        }
        super().__init__(OrderedDict(stem | stages))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs))
        self.downsample = nn.Identity() if stride == 1 and inputs == outputs else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


def norm(channels: int) -> nn.GroupNorm:
    """The normalisation that stands in BatchNorm's place, and bears its name."""
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


def spatial_softmax(maps: Tensor) -> Tensor:
    """Mean place of each map (N, M, H, W), its softmax taken as a density (Finn et al., 2016).

    Places (N, M, 2) are float32: x to the right and y downwards, -1 and 1 at the centres of the outermost pixels.
    """
    height, width = maps.shape[-2:]
    density = maps.float().flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    x = torch.linspace(-1, 1, width, device=maps.device)
    y = torch.linspace(-1, 1, height, device=maps.device)
    return torch.stack([(density.sum(dim=2) * x).sum(dim=-1), (density.sum(dim=3) * y).sum(dim=-1)], dim=-1)


def to_channels_first(images: Tensor) -> Tensor:
    """Map bytes (..., H, W, 3) of 0..255 to channels first (..., 3, H, W), -1..1."""
    return images.movedim(-1, -3).float() / 127.5 - 1
