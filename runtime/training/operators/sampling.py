"""Operators that read an image at positions that are computed."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.table import Computation, NodeForm, ints, operator

_MODES: Final = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample", 16, 20, 22)
def _grid_sample(form: NodeForm) -> Computation:
    mode = form.text("mode", "linear" if form.version >= 20 else "bilinear")
    mode = _MODES.get(mode, mode)
    padding, corners = form.text("padding_mode", "zeros"), bool(form.integer("align_corners"))
    return lambda x, grid: functional.grid_sample(x, grid, mode, padding, corners)


@operator("AffineGrid", 20, sizes=(1,))
def _affine_grid(form: NodeForm) -> Computation:
    corners = bool(form.integer("align_corners"))
    return lambda theta, size: functional.affine_grid(theta, ints(size), corners)


@operator("RoiAlign", 10, 16, 22)
def _roi_align(form: NodeForm) -> Computation:
    height, width = form.integer("output_height", 1), form.integer("output_width", 1)
    ratio, scale = form.integer("sampling_ratio"), form.number("spatial_scale", 1.0)
    takes_max = form.text("mode", "avg") == "max"
    default = "output_half_pixel" if form.version == 10 else "half_pixel"
    is_shifted = form.text("coordinate_transformation_mode", default) == "half_pixel"

    def one(image: Tensor, box: Tensor) -> Tensor:
        """(C, height, width) of a box (x1, y1, x2, y2)."""
        x1, y1, x2, y2 = (box * scale - (0.5 if is_shifted else 0.0)).unbind()
        w, h = x2 - x1, y2 - y1
        if not is_shifted:
            w, h = w.clamp(min=1.0), h.clamp(min=1.0)
        rows = ratio or max(int(torch.ceil(h / height)), 1)
        columns = ratio or max(int(torch.ceil(w / width)), 1)
        y = y1 + (torch.arange(height * rows, device=image.device) + 0.5) * (h / (height * rows))
        x = x1 + (torch.arange(width * columns, device=image.device) + 0.5) * (
            w / (width * columns)
        )
        corners = _corners(image, y, x)
        if takes_max:  # onnxruntime takes the largest of the four weighted corners
            best = torch.stack(corners).amax(0)
            cells = best.reshape(len(image), height, rows, width, columns)
            return cells.amax((2, 4))
        cells = sum(corners).reshape(len(image), height, rows, width, columns)
        return cells.mean((2, 4))

    def run(x: Tensor, boxes: Tensor, batch: Tensor) -> Tensor:
        boxes = boxes.detach()  # samples jump as they move
        if not len(boxes):
            return x.new_zeros(0, x.shape[1], height, width)
        found = [one(x[int(b)], box) for box, b in zip(boxes, batch.tolist(), strict=True)]
        return torch.stack(found)

    return run


def _centres(start: Tensor, length: Tensor, count: int) -> Tensor:
    """The centres of `count` equal parts of a length."""
    return start + (torch.arange(count, device=start.device) + 0.5) * (length / count)


def _corners(image: Tensor, y: Tensor, x: Tensor) -> list[Tensor]:
    """The four weighted neighbours of each position (rows y, columns x); outside: zeros."""
    height, width = image.shape[1:]
    inside = ((y >= -1) & (y <= height))[:, None] & ((x >= -1) & (x <= width))[None]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    low_y, low_x = y.floor().long(), x.floor().long()
    high_y, high_x = (low_y + 1).clamp(max=height - 1), (low_x + 1).clamp(max=width - 1)
    up_y, up_x = y - low_y, x - low_x
    found = []
    for rows, wy in ((low_y, 1 - up_y), (high_y, up_y)):
        for columns, wx in ((low_x, 1 - up_x), (high_x, up_x)):
            weight = wy[:, None] * wx[None] * inside
            found.append(image[:, rows][:, :, columns] * weight)
    return found
