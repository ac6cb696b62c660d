"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator, plain

plain("MatMul", 1, 9, 13)(torch.matmul)


@operator("Gemm", 7, 9, 11, 13)
def product_of_matrices(form: NodeForm) -> Computation:
    """The product, and the sum, of a node with the attributes of Gemm."""
    alpha, beta = form.number("alpha", 1.0), form.number("beta", 1.0)
    flip_a, flip_b = form.integer("transA"), form.integer("transB")
    is_linear = flip_b and alpha == beta == 1

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.T if flip_a else a
        if is_linear and (c is None or c.shape == b.shape[:1]):
            return functional.linear(a, b, c)
        y = a @ (b.T if flip_b else b)
        y = y if alpha == 1 else alpha * y
        return y if c is None else y + (c if beta == 1 else beta * c)

    return run


@operator("Einsum", 12, 28)
def _einsum(form: NodeForm) -> Computation:
    equation = form.text("equation").replace(" ", "")
    return lambda *tensors: torch.einsum(equation, *tensors)


plain("Det", 11, 22)(torch.det)
