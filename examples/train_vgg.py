"""Train a VGG-like net on MNIST and export it (needs torch): wide 3x3 convolutions in a row.

Simonyan and Zisserman (2015), for small images: 3x3 convolutions, one with 64 channels, two
with 128, two with 256, a pool after each width, then dense layers of 512. With BatchNormalization,
whose nodes the exported graph keeps. Nearly all of its time goes into the convolutions, which is
what low-rank methods are about. 22 minutes of processor time on two cores; torch comes with
the extra `train`.

    python examples/train_vgg.py --output vgg.onnx
"""

from __future__ import annotations

import torch
from mnist import MEAN, STD, TrainingRecipe
from torch import nn
from training import training_command

STAGES = ((64,), (128, 128), (256, 256))  # channels of the convolutions between two pools
HIDDEN_UNITS = 512


class Vgg(nn.Module):
    """Three stages of convolutions, each with a pool; three dense layers. Takes pixels in 0..1."""

    def __init__(self) -> None:
        """Set up layers with torch's default initial weights."""
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 1
        for stage in STAGES:
            for channels in stage:
                layers += [
                    nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                ]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(channels_in * 3 * 3, HIDDEN_UNITS),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(HIDDEN_UNITS, HIDDEN_UNITS),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(HIDDEN_UNITS, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to logits (n, 10)."""
        x = self.features((image - MEAN) / STD)  # 28x28 -> 14x14 -> 7x7 -> 3x3
        logits: torch.Tensor = self.head(x.flatten(1))  # (n, 256, 3, 3) -> (n, 2304)
        return logits


main = training_command(
    Vgg,
    TrainingRecipe(epochs=2, peak_learning_rate=0.05, channels_last=True),
    name="vgg",
    summary="Train a VGG-like net on MNIST, export it to ONNX, and measure the exported file.",
)

if __name__ == "__main__":
    main()
