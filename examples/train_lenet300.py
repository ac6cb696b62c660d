"""Train LeNet-300-100 on MNIST and export it (needs torch): dense layers alone, 266,610 parameters.

The other network of the compression literature (LeCun et al. 1998; Han et al. 2016). Half a minute
on two idle cores; torch comes with the extra `train`.

    python examples/train_lenet300.py --output lenet300.onnx
"""

from __future__ import annotations

import torch
from mnist import MEAN, STD, TrainingRecipe
from torch import nn
from training import training_command


class LeNet300(nn.Module):
    """Three dense layers of 300, 100 and 10 units. Takes pixel values in 0..1."""

    def __init__(self) -> None:
        """Set up layers with torch's default initial weights."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to logits (n, 10)."""
        x = ((image - MEAN) / STD).view(image.size(0), -1)  # (n, 1, 28, 28) -> (n, 784)
        logits: torch.Tensor = self.layers(x)
        return logits


main = training_command(
    LeNet300,
    # dense layers gain little from augmentation, and the published nets were trained without
    TrainingRecipe(epochs=20, rotation_degrees=0.0, scale_ratio=0.0, shift_pixels=0.0),
    name="lenet300",
    summary="Train LeNet-300-100 on MNIST, export it to ONNX, and measure the exported file.",
)

if __name__ == "__main__":
    main()
