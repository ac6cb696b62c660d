from __future__ import annotations

from onnxslim.runtime.explain import explain


def test_explain_removes_places_in_foreign_source_code() -> None:
    raw = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/core/graph/model.cc:256 "
        "onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&) "
        "Unsupported model IR version: 99\n"
    )
    assert explain(raw) == "Unsupported model IR version: 99."
    assert explain(MemoryError()) == "MemoryError."
    assert explain(RuntimeError("word " * 300)).endswith("word ...")
