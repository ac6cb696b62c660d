"""A graph on its way: nodes are drawn one at a time, and each is run before it is kept.

Because onnxruntime has run every node, the values are known: what is drawn next can look at them
(indices stay in range, shapes fit), and a node that onnxruntime does not take is dropped at once.
Main graphs, bodies and functions are `Scope`s of different kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

LOCAL_DOMAIN: Final = "local.functions"
_MAX_ELEMENTS: Final = 4000
_LARGEST: Final = 1e4  # larger values drown what is added to them
FLOATS: Final = (np.float32, np.float32, np.float32, np.float32, np.float64, np.float16)
"""Element types of floats, in the shares in which they are drawn."""
DTYPES: Final = (*FLOATS, np.int64, np.int64, np.int32, np.int8, np.uint8, np.uint32, np.bool_)
"""Element types of inputs, in the shares in which they are drawn."""

Array = np.ndarray[Any, Any]


class Unfit(Exception):
    """What was drawn cannot be: no value fits, or onnxruntime refuses the node."""


@dataclass(frozen=True)
class Value:
    """A tensor or a sequence of tensors, with what it holds for the inputs at hand.

    Attributes:
        array: the tensor, or a list of tensors.
        is_constant: whether the value is an initializer or the output of a `Constant`.
    """

    name: str
    array: Any
    is_constant: bool = False

    @property
    def kind(self) -> str:
        """The type as schemas spell it, `tensor(float)`."""
        if isinstance(self.array, list):
            return f"seq({_kind(self.array[0])})" if self.array else "seq()"
        return _kind(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        return () if isinstance(self.array, list) else tuple(self.array.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        if isinstance(self.array, list):
            raise Unfit
        return np.dtype(self.array.dtype)

    @property
    def is_float(self) -> bool:
        return not isinstance(self.array, list) and self.dtype.kind == "f"

    def declared(self, shape: Sequence[int | str | None] | None = None) -> onnx.ValueInfoProto:
        """The value as an input or output; without `shape`, its type and rank alone."""
        if isinstance(self.array, list):
            inner = helper.make_tensor_type_proto(_elem_type(self.array[0]), None)
            return helper.make_value_info(self.name, helper.make_sequence_type_proto(inner))
        dims = [None] * self.rank if shape is None else list(shape)
        return helper.make_tensor_value_info(self.name, _elem_type(self.array), dims)


def _elem_type(array: Array) -> int:
    if array.dtype.kind in "OUS":
        return onnx.TensorProto.STRING
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def _kind(array: Array) -> str:
    name = onnx.TensorProto.DataType.Name(_elem_type(array)).lower()
    return f"tensor({name})"


@cache
def schema_of(op: str, opset: int) -> onnx.defs.OpSchema | None:
    """The operator as the opset defines it; None where it does not."""
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


@cache
def _input_names(op: str, opset: int) -> tuple[str, ...]:
    schema = schema_of(op, opset)
    return () if schema is None else tuple(item.name for item in schema.inputs)


@cache
def _input_types(op: str, opset: int, index: int) -> frozenset[str]:
    schema = schema_of(op, opset)
    if schema is None:
        return frozenset()
    return frozenset(schema.inputs[min(index, len(schema.inputs) - 1)].types)


# ----------------------------------------------------------------- a graph on its way


@dataclass
class Scope:
    """A graph on its way.

    Attributes:
        rng: the source of all choices.
        opset: of the default domain.
        functions: the local functions of the model so far.
        outer: the graph around a body; None for the main graph and for functions.
        prefix: of the names of values. Bodies of one depth share it, so names recur across bodies.
        takes_inputs: whether a value that is missing may become an input (the main graph).
        focus: a value to take next where it fits, so that operators follow each other.
    """

    rng: Random
    opset: int
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    outer: Scope | None = None
    prefix: str = "v"
    takes_inputs: bool = False
    is_function: bool = False
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    focus: Value | None = None

    # ------------------------------------------------------------- choices

    def one(self, *items: Any) -> Any:
        """One of `items`."""
        return self.rng.choice(items)

    def often(self, share: float = 0.5) -> bool:
        """Whether an event of probability `share` happens."""
        return self.rng.random() < share

    def some(self, shape: Sequence[int], dtype: Any = np.float32) -> Array:
        """Values as a model would see them: small, both signs, few equal."""
        dtype = np.dtype(dtype)
        noise = np.random.default_rng(self.rng.getrandbits(32))
        if dtype.kind == "b":
            return noise.integers(0, 2, shape).astype(bool)
        if dtype.kind in "iu":
            return noise.integers(0 if dtype.kind == "u" else -3, 6, shape).astype(dtype)
        if dtype.kind == "O":
            return np.array(noise.choice(["a", "b c", ""], shape), object).reshape(shape)
        return noise.standard_normal(shape).astype(dtype)

    def size(self) -> int:
        """A size of an axis."""
        return int(self.one(1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 8))

    # ------------------------------------------------------------- values

    def visible(self) -> list[Value]:
        """What a node may read: its own graph's values, then those of the graphs around it."""
        outer = [] if self.outer is None else self.outer.visible()
        return [*outer, *self.values]

    def take(
        self, op: str, index: int = 0, where: Callable[[Value], bool] = lambda value: True
    ) -> Value:
        """A value that the operator takes as its input `index`, made where there is none.

        Later ones are likelier.
        """
        kinds = _input_types(op, self.opset, index)
        focus = self.focus
        if focus is not None and focus.kind in kinds and where(focus):
            self.focus = None
            return focus
        fitting = [value for value in self.visible() if value.kind in kinds and where(value)]
        if self.often(0.9):  # what depends on constants alone is folded at once
            fitting = [value for value in fitting if not value.is_constant]
        if not fitting:
            return self._made_for(kinds, where)
        return fitting[-1 - min(int(self.rng.expovariate(0.5)), len(fitting) - 1)]

    def _made_for(self, kinds: frozenset[str], where: Callable[[Value], bool]) -> Value:
        dtypes = [dtype for dtype in DTYPES if _kind(np.empty(0, dtype)) in kinds]
        for _ in range(8 if dtypes else 0):
            shape = [self.size() for _ in range(self.rng.randint(0, 4))]
            array = np.asarray(self.some(shape, self.one(*dtypes)))
            if where(Value("", array)):
                return self.made(array)
        raise Unfit

    def floats(self, op: str, *ranks: int) -> Value:
        """A float tensor with elements that the operator takes, of one of these ranks if given."""

        def fits(value: Value) -> bool:
            return (
                value.is_float and 0 not in value.shape and value.rank in (ranks or (value.rank,))
            )

        return self.take(op, 0, fits)

    def made(self, array: Array) -> Value:
        """A new value: an input, an initializer, or a constant."""
        if self.takes_inputs and self.often(0.4 if self.inputs else 1.0):
            value = Value(self.name(), np.asarray(array))
            self.inputs.append(value)
            self.values.append(value)
            return value
        return self.constant(array)

    def constant(self, array: Any) -> Value:
        """A constant: shared with one of equal value, an initializer, or a `Constant`."""
        array = np.asarray(array)
        for known in self.visible():
            if known.is_constant and _equal(known.array, array) and self.often(0.6):
                return known
        value = Value(self.name(), array, is_constant=True)
        if not self.is_function and self.often(0.75):
            self.initializers.append(value)
        else:
            tensor = numpy_helper.from_array(array, value.name)
            self.nodes.append(helper.make_node("Constant", [], [value.name], value=tensor))
        self.values.append(value)
        if self.often(0.04):
            return self.add("Identity", value)
        return value

    def name(self) -> str:
        """A name that no value has."""
        taken = {value.name for value in self.visible()}
        number = len(self.values)
        while f"{self.prefix}{number}" in taken:
            number += 1
        return f"{self.prefix}{number}"

    # ------------------------------------------------------------- nodes

    def add(self, op: str, *inputs: Value | None, **parameters: Any) -> Value:
        """Append a node, and give its first output."""
        return self.add_all(op, *inputs, outputs=1, **parameters)[0]

    def add_all(
        self, op: str, *inputs: Value | None, outputs: int = 1, **parameters: Any
    ) -> list[Value]:
        """Append a node with so many outputs.

        A parameter becomes an attribute or a constant input, as the schema of the opset has it; one
        that the opset does not know is left out.

        Raises:
            Unfit: the opset has no such operator, or onnxruntime refuses the node or gives values
                that are too many, too large, or not finite.
        """
        schema = schema_of(op, self.opset)
        if schema is None:
            raise Unfit
        operands = list(inputs)
        attributes = {}
        for key, given in parameters.items():
            if key in schema.attributes:
                attributes[key] = _plain(given)
            elif key in _input_names(op, self.opset):
                at = _input_names(op, self.opset).index(key)
                operands += [None] * (at + 1 - len(operands))
                operands[at] = given if isinstance(given, Value) else self.constant(given)
        return self.append(op, "", operands, outputs, attributes)

    def append(
        self,
        op: str,
        domain: str,
        operands: Sequence[Value | None],
        outputs: int,
        attributes: Mapping[str, Any],
    ) -> list[Value]:
        """Append a node that onnxruntime runs; see `add_all`."""
        names: list[str] = []
        for _ in range(outputs):
            name = self.name()
            while name in names:
                name += "_"
            names.append(name)
        node = helper.make_node(
            op,
            ["" if operand is None else operand.name for operand in operands],
            names,
            name=self.one("", f"n{len(self.nodes)}"),
            domain=domain,
            **{key: given for key, given in attributes.items() if given != []},
        )
        if self.often(0.1):
            node.doc_string = "as exported"
            node.metadata_props.add(key="trace", value="line 1")
        known = {value.name: value for value in self.visible()}
        found = run_node(node, known, self.opset, self.functions)
        values = [Value(name, array) for name, array in zip(names, found, strict=True)]
        if any(not _is_tame(value.array) for value in values):
            raise Unfit
        self.nodes.append(node)
        self.values += values
        return values


def _plain(given: Any) -> Any:
    """A parameter as the value of an attribute."""
    if isinstance(given, Value):
        given = given.array
    if isinstance(given, np.ndarray):
        return given.tolist()
    return given


def _equal(known: Any, array: Array) -> bool:
    return (
        not isinstance(known, list)
        and known.dtype == array.dtype
        and known.shape == array.shape
        and known.tobytes() == array.tobytes()
    )


def _is_tame(array: Any) -> bool:
    if isinstance(array, list):
        return bool(array) and all(map(_is_tame, array))
    if array is None or array.size > _MAX_ELEMENTS:
        return False
    if array.dtype.kind != "f" or not array.size:
        return True
    return bool(np.isfinite(array).all() and np.abs(array).max() <= _LARGEST)


# ----------------------------------------------------------------- running one node


def quiet_options(*, optimised: bool = False) -> ort.SessionOptions:
    """One thread, no messages; onnxruntime's own optimisations off unless `optimised`.

    With them off, weights are not packed either: a packed weight is multiplied by another kernel,
    which rounds differently.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


_OPTIONS: Final = quiet_options()


def run_node(
    node: onnx.NodeProto,
    known: Mapping[str, Value],
    opset: int,
    functions: Sequence[onnx.FunctionProto],
) -> list[Any]:
    """What the node gives.

    Raises:
        Unfit: onnxruntime refuses it.
    """
    read = [known[name] for name in dict.fromkeys(names_read(node)) if name in known]
    free = [value for value in read if not value.is_constant]
    graph = helper.make_graph(
        [node],
        "one",
        [value.declared() for value in free],
        [onnx.ValueInfoProto(name=name) for name in node.output],
        [numpy_helper.from_array(value.array, value.name) for value in read if value.is_constant],
    )
    model = as_model(graph, opset, functions)
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), _OPTIONS, providers=["CPUExecutionProvider"]
        )
        found: list[Any] = session.run(None, {value.name: value.array for value in free})
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise Unfit(str(error)) from error
    return found


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those that its bodies take from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            made = {item.name for item in (*body.input, *body.initializer)}
            for inner in body.node:
                yield from (name for name in names_read(inner) if name not in made)
                made.update(inner.output)
            yield from (item.name for item in body.output if item.name not in made)


def as_model(
    graph: onnx.GraphProto,
    opset: int,
    functions: Sequence[onnx.FunctionProto] = (),
    ir_version: int = 10,
) -> onnx.ModelProto:
    """The model of a graph."""
    imports = [helper.make_opsetid("", opset)]
    if functions:
        imports.append(helper.make_opsetid(LOCAL_DOMAIN, 1))
    return helper.make_model(
        graph, ir_version=ir_version, opset_imports=imports, functions=list(functions)
    )
