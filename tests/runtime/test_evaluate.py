from __future__ import annotations

import numpy as np
import pytest

from onnxslim.errors import RuntimeFailure
from onnxslim.runtime.evaluate import evaluate
from support import parse


def test_outputs_come_in_the_order_of_the_model() -> None:
    model = parse(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] b, float[2] a) { a = Neg (x) b = Abs (x) }"""
    )
    b, a = evaluate(model, {"x": np.array([1, -2], np.float32)})
    assert b.tolist() == [1, 2]
    assert a.tolist() == [-1, 2]


def test_outputs_outlive_their_session() -> None:
    model = parse("""<opset_import: ["" : 17]> g () => (float[1] y) {
        y = Constant <value = float[1] {3}> () }""")
    results = [evaluate(model, {})[0] for _ in range(50)]
    assert all(result.tolist() == [3.0] for result in results)


def test_refusal_is_a_runtime_failure() -> None:
    model = parse("""<opset_import: ["" : 17]>
        g (float[N] x, int64[1] s) => (float[M] y) { y = Reshape (x, s) }""")
    feeds = {"x": np.zeros(3, np.float32), "s": np.array([2], np.int64)}
    with pytest.raises(RuntimeFailure, match="Reshape"):
        evaluate(model, feeds)


def test_sums_do_not_depend_on_where_the_numbers_lie_in_memory() -> None:
    model = parse(
        """<opset_import: ["" : 17]>
        g (float[64, 37, 8] x) => (float[64, 37, 1] y) { y = ReduceMean <axes = [2]> (x) }"""
    )
    x = np.random.default_rng(0).standard_normal((64, 37, 8)).astype(np.float32)
    memory = np.empty(x.nbytes + 64, np.uint8)
    results = []
    for offset in (0, 4, 8, 20):
        moved = memory[offset : offset + x.nbytes].view(np.float32).reshape(x.shape)
        moved[...] = x
        results.append(evaluate(model, {"x": moved})[0].tobytes())
    assert len(set(results)) == 1
