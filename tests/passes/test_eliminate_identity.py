from __future__ import annotations

from onnxslim.passes.eliminate_identity import EliminateIdentity
from support import assert_declines, assert_rewrites


def test_chain_of_no_ops_disappears() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = Identity (x)
            b = Cast <to = 1> (a)
            y = Relu (b)
        }""",
        EliminateIdentity(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            y = Relu (x)
        }""",
    )


def test_no_op_behind_the_last_operator_hands_over_the_output_name() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = Relu (x)
            y = Identity (a)
        }""",
        EliminateIdentity(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            y = Relu (x)
        }""",
    )


def test_input_that_is_also_output_keeps_its_node() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            y = Identity (x)
        }""",
        EliminateIdentity(),
        "between two fixed ends",
    )
