"""Calls of local functions replaced by the bodies of the functions.

Not here: which functions a user wants to keep (see the pass `inline-functions`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx
import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.functions import DOMAIN
from onnxslim.graph.ir import Constant, Node, Variable, subgraphs_of
from onnxslim.graph.local_functions import (
    FunctionTemplate,
    Key,
    call_key,
    calls,
    calls_of,
    drop_unused_functions,
    expanded_sizes,
    function_key,
    function_name,
)
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import PassResult

MAX_NODES: Final = 100_000  # that the calls of one function may become
_RUNTIME_DOMAINS: Final = ("com.microsoft", "com.ms.")


def inline_functions(
    graph: gs.Graph,
    is_kept: Callable[[str], bool] = lambda name: False,
    *,
    with_own: bool = False,
) -> PassResult:
    """Replace calls of functions of other tools by their bodies, and drop the functions.

    Large constants of a function become initializers that all its calls share.

    Args:
        graph: the main graph.
        is_kept: whether the function with a name such as `my.domain.Block` stays.
        with_own: whether calls of onnxslim's own functions are replaced as well.
    """
    rw = Rewriter(graph)
    inliner = _Inliner(rw, is_kept, with_own)
    pending = [node for nodes in calls(graph, with_own).values() for node in nodes]
    while pending:
        node = pending.pop()
        if rw.is_alive(node):  # another call that is gone may have been its only reader
            pending += inliner.inline(node)
    result = rw.result()
    if result.changes:
        drop_unused_functions(graph)
    return result


class _Inliner:
    def __init__(self, rw: Rewriter, is_kept: Callable[[str], bool], with_own: bool) -> None:
        self.rw = rw
        self.is_kept = is_kept
        self.with_own = with_own
        self.functions = {function_key(f): f for f in rw.main.local_functions}
        self.sizes = expanded_sizes({k: list(calls_of(f.node)) for k, f in self.functions.items()})
        self.calls = {key: len(nodes) for key, nodes in calls(rw.main, with_own).items()}
        self.templates: dict[Key, FunctionTemplate | str] = {}
        self.constants: dict[Key, list[Constant]] = {}

    def inline(self, node: Node) -> list[Node]:
        """Replace one call, if possible; returns the calls of functions in the body."""
        key = call_key(node)
        template = self.template(key)
        if isinstance(template, str):
            self.rw.skip(function_name(key), f"stays a local function: {template}")
            return []
        function = template.function
        given = len(function.input) - len(template.constants)
        if len(node.inputs) > given or len(node.outputs) > len(function.output):
            self.rw.skip(node, f"gives more operands than `{function_name(key)}` has")
            return []
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            self.rw.skip(node, "stays a call of a local function: it gives a graph as attribute")
            return []
        body = template.body(node)
        del body.outputs[len(node.outputs) :]
        operands = [*node.inputs, *(Variable("") for _ in range(given - len(node.inputs)))]
        what = f"the local function `{function_name(key)}` became its nodes"
        inner = list(body.nodes)
        self.rw.inline(node, body, [*operands, *self.constants[key]], what)
        return [item for each in inner for item in _with_bodies(each) if self.is_call(item)]

    def is_call(self, node: Node) -> bool:
        """Whether `node` calls a function that is replaced."""
        return (self.with_own or node.domain != DOMAIN) and call_key(node) in self.functions

    def template(self, key: Key) -> FunctionTemplate | str:
        """The function prepared for inlining, or why it stays."""
        if key not in self.templates:
            try:
                self.templates[key] = self._prepared(key)
            except NotApplicable as reason:
                self.templates[key] = str(reason)
        return self.templates[key]

    def _prepared(self, key: Key) -> FunctionTemplate:
        domain = key[0]
        if self.is_kept(function_name(key)):
            raise NotApplicable("it was asked for")
        if domain in ("", "ai.onnx.ml") or domain.startswith(_RUNTIME_DOMAINS):
            raise NotApplicable("onnxruntime may have an operator of that name")
        size = self.sizes.get(key)
        if size is None:
            raise NotApplicable("it calls itself")
        if size * self.calls.get(key, 1) > MAX_NODES:
            raise NotApplicable(f"its calls would become more than {MAX_NODES:,} nodes")
        function = self.functions[key]
        self._import_domains(function)
        template = FunctionTemplate.of(function)
        self.constants[key] = [
            self.rw.constant(values, name) for name, values in template.constants.items()
        ]
        return template

    def _import_domains(self, function: onnx.FunctionProto) -> None:
        """Let the model import what `function` imports.

        Raises:
            NotApplicable: some operator means something else in the model, or may.
        """
        for entry in function.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            here = self.rw.main.opset_of(domain)
            if here is None:
                self.rw.main.import_domain(domain, entry.version)
            elif entry.version == here or self._is_local(domain):
                continue
            elif domain or not _all_alike(function, entry.version, here):
                raise NotApplicable(
                    f"it is written for version {entry.version} of the domain "
                    f"`{domain or 'ai.onnx'}`, the model for {here}"
                )

    def _is_local(self, domain: str) -> bool:
        """Whether all operators of `domain` are functions of the model, which have no versions."""
        return any(key[0] == domain for key in self.functions)


def _with_bodies(node: Node) -> list[Node]:
    inner = [n for body in subgraphs_of(node) for each in body.nodes for n in _with_bodies(each)]
    return [node, *inner]


def _all_alike(function: onnx.FunctionProto, version: int, other: int) -> bool:
    """Whether all standard operators of `function` are the same at both opsets."""
    for domain, op, _ in calls_of(function.node):
        if domain in ("", "ai.onnx"):
            try:
                both = [onnx.defs.get_schema(op, v, "").since_version for v in (version, other)]
            except onnx.defs.SchemaError:
                return False
            if both[0] != both[1]:
                return False
    return True
