"""Residual branches: which terms of sums can go, and what reads the sum."""

from __future__ import annotations

import pytest
from channel_nets import net

from onnxslim.analysis.branches import next_layers, residual_branches
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes


def loaded(text: str) -> Model:
    model = Model.load(net(text))
    infer_shapes(model)
    return model


def branches(text: str) -> dict[str, list[str]]:
    """For each branch its layers."""
    found = residual_branches(loaded(text).graph)
    return {branch.label: [layer.name for layer in branch.layers] for branch in found}


RESIDUAL = """
g (float[2,4] x) => (float[2,3] y) <float[4,4] a, float[4,4] b, float[4,4] c, float[4,3] d> {
  f = MatMul (x, a)
  r = Relu (f)
  h = MatMul (r, b)
  s = Add (x, h)
  p = MatMul (s, c)
  t = Add (p, s)
  y = MatMul (t, d)
}"""


def test_a_term_with_weights_of_its_own_is_a_branch() -> None:
    assert branches(RESIDUAL) == {"h": ["f", "h"], "p": ["p"]}


def test_a_branch_lists_all_that_only_it_needs() -> None:
    first, _ = residual_branches(loaded(RESIDUAL).graph)
    assert [node.outputs[0].name for node in first.nodes] == ["f", "r", "h"]


def test_where_both_terms_have_weights_each_is_a_branch() -> None:
    text = """
    g (float[2,4] x) => (float[2,4] y) <float[4,4] a, float[4,4] b> {
      p = MatMul (x, a)
      q = MatMul (x, b)
      y = Add (p, q)
    }"""
    assert branches(text) == {"p": ["p"], "q": ["q"]}


def test_every_term_of_a_sum_of_three_is_looked_at() -> None:
    text = """
    g (float[2,4] x) => (float[2,4] y) <float[4,4] a, float[4,4] b> {
      p = MatMul (x, a)
      q = MatMul (x, b)
      y = Sum (p, x, q)
    }"""
    assert branches(text) == {"p": ["p"], "q": ["q"]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            """g (float[2,4] x) => (float[2,4] y) <float[4,4] a, float[4] b> {
              p = MatMul (x, a)
              y = Add (p, b)
            }""",
            "the other term is constant",
        ),
        (
            """g (float[1,4] x) => (float[2,4] y) <float[4,4] a, int64[2] n = {2, 4}> {
              p = MatMul (x, a)
              e = Expand (p, n)
              y = Add (e, x)
            }""",
            "the other term is smaller than the sum",
        ),
        (
            """g (float[2,4] x) => (float[2,4] y) { r = Relu (x) y = Add (r, x) }""",
            "it has no weights",
        ),
        (
            """g (float[2,4] x) => (float[2,4] y, float[2,4] p) <float[4,4] a> {
              p = MatMul (x, a)
              y = Add (p, x)
            }""",
            "its weights are needed for another output",
        ),
        (
            """g (float[2,4] x) => (float[2,4] y) <float[4,4] a> {
              p = MatMul (x, a)
              y = Add (p, p)
            }""",
            "both terms are the same",
        ),
        (
            """g (float[2,4] x) => (float[2,4] y) <float[4,4] a> {
              p = MatMul (x, a)
              y = Mul (p, x)
            }""",
            "it is no sum",
        ),
    ],
)
def test_no_branch(text: str, why: str) -> None:
    assert branches(text) == {}, why


def test_bodies_are_not_looked_into() -> None:
    text = """
    g (float[2,4] x, bool c) => (float[2,4] y) <float[4,4] a> {
      y = If (c) <
        then_branch = t () => (float[2,4] p) { h = MatMul (x, a) p = Add (h, x) },
        else_branch = f () => (float[2,4] q) { q = Relu (x) }
      >
    }"""
    assert branches(text) == {}


def test_what_is_dead_already_belongs_to_no_branch() -> None:
    text = """
    g (float[2,4] x) => (float[2,4] y) <float[4,4] a, float[4,4] b> {
      dead = MatMul (x, b)
      p = MatMul (x, a)
      y = Add (p, x)
    }"""
    assert branches(text) == {"p": ["p"]}


def test_the_next_layers_are_those_that_read_a_tensor_or_what_is_made_of_it() -> None:
    graph = loaded(RESIDUAL).graph
    tensors = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
    assert sorted(layer.name for layer in next_layers(graph, tensors["s"])) == ["p", "y"]
    assert [layer.name for layer in next_layers(graph, tensors["f"])] == ["h"]
    assert next_layers(graph, tensors["y"]) == ()
