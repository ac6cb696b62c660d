"""Train a ResNet-14 on MNIST and export it (needs torch): residual sums, strides, normalisation.

He et al. (2016), for small images: a stem, three stages of two basic blocks with 32, 64 and 128
channels at 14x14, 7x7 and 4x4, global average pooling, one dense layer. The exported graph keeps
its BatchNormalization nodes, as models do that were exported for more training. Ten minutes
of processor time on two cores; torch comes with the extra `train`.

    python examples/train_resnet.py --seed 0 --output resnet14.onnx
"""

from __future__ import annotations

import torch
from mnist import MEAN, STD, TrainingRecipe
from torch import nn
from training import training_command

WIDTHS = (32, 64, 128)
BLOCKS_PER_STAGE = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: 1x1 where the shape changes, else the input."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Set up layers with torch's default initial weights."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, channels_in, h, w) to (n, channels, h / stride, w / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet14(nn.Module):
    """A stem and six basic blocks in three stages. Takes pixel values in 0..1."""

    def __init__(self) -> None:
        """Set up layers with torch's default initial weights."""
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, WIDTHS[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(),
        ]
        channels_in = WIDTHS[0]
        for channels in WIDTHS:
            for _ in range(BLOCKS_PER_STAGE):
                # the first block of a stage halves the image where it doubles the channels
                layers.append(BasicBlock(channels_in, channels, channels // channels_in))
                channels_in = channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels_in, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to logits (n, 10)."""
        x = self.pool(self.features((image - MEAN) / STD))
        logits: torch.Tensor = self.head(x.flatten(1))  # (n, 128, 1, 1) -> (n, 128)
        return logits


main = training_command(
    ResNet14,
    TrainingRecipe(epochs=3, peak_learning_rate=0.1, channels_last=True),
    name="resnet14",
    summary="Train a ResNet-14 on MNIST, export it to ONNX, and measure the exported file.",
)

if __name__ == "__main__":
    main()
