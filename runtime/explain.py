"""Turn an error of onnxruntime into an error of ours, and into a sentence for the user.

Owns: which parts of the text are cut. The sentence names the node where onnxruntime does.
"""

from __future__ import annotations

import re

from onnxslim.errors import OutOfMemory, RuntimeFailure, is_out_of_memory

_HEAD = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_PLACE = re.compile(
    r"[\w./\\-]+\.(?:h|cc|hpp|cpp):\d+ (?:[\w:~<>&*, ]*::[\w~<>]+\(.*?\)(?: const)? |\w+ )?"
)
_NODE = re.compile(
    r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: "
)
_MOST = 4000  # characters that are looked at


def failure(what: str, error: Exception) -> RuntimeFailure:
    """The error to raise where onnxruntime raised `error`.

    Args:
        what: what onnxruntime did not do: `cannot load the model`.
        error: of any kind, as the kinds that onnxruntime raises have no common base.
    """
    if is_out_of_memory(error):
        return OutOfMemory(f"onnxruntime {what}: memory does not suffice: {explain(error)}")
    return RuntimeFailure(f"onnxruntime {what}: {explain(error)}")


def explain(error: BaseException, limit: int = 400) -> str:
    """The message of `error` as one sentence, without positions in onnxruntime's source code."""
    text = " ".join(str(error)[:_MOST].split())  # a name may be a megabyte long
    text = _PLACE.sub("", _HEAD.sub("", text))
    text = _NODE.sub(lambda found: _node_words(found[1], found[2]), text).strip()
    if not text:
        return f"{type(error).__name__}."
    if len(text) > limit:
        return text[:limit].rsplit(" ", 1)[0] + " ..."
    return text if text[-1] in ".!?" else text + "."


def _node_words(op: str, name: str) -> str:
    return f"node `{name}` ({op}): " if name else f"a node {op}: "
