"""Files that ask for more than they hold: sizes, turns, depth, names, and where data lie.

Each case is a function that writes its files into a folder and returns the words of a command.
What must come of it: `tests/hostile.py`.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from large_graphs import LARGE_GRAPHS, large_graph
from layer_nets import dense_net
from onnx import TensorProto, helper, numpy_helper

from onnxslim.tools.pack import pack

Case = Callable[[Path], list[str]]
Shape = Sequence[int | str] | None
_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_IMPORTS: Final = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
CASES: dict[str, Case] = {}
"""By name, in the order of their kinds."""


def _case(name: str) -> Callable[[Case], Case]:
    def add(make: Case) -> Case:
        CASES[name] = make
        return make

    return add


def _value(name: str, kind: int = _FLOAT, shape: Shape = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, object] | None = None,
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 17,
) -> list[str]:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [_value("x", shape=[4])],
        outputs or [_value("y")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *_IMPORTS[1:]]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return ["compress", "m.onnx", "out.onnx"]


# ----------------------------------------------------------------------- sizes


@_case("an input of terabytes")
def _huge_input(folder: Path) -> list[str]:
    node = helper.make_node("Relu", ["x"], ["y"])
    return _save(folder, [node], inputs=[_value("x", shape=[1 << 20, 1 << 20])])


@_case("a size of 2^62")
def _overflowing(folder: Path) -> list[str]:
    node = helper.make_node("Relu", ["x"], ["y"])
    return _save(folder, [node], inputs=[_value("x", shape=[1 << 62, 1 << 62])])


@_case("an open size that a Reshape pins to terabytes")
def _pinned(folder: Path) -> list[str]:
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    return _save(folder, [node], {"s": [1 << 40]}, inputs=[_value("x", shape=["n"])])


_GROWING: Final = {
    "Expand": (["x", "s"], {"s": [1 << 40, 4]}),
    "Tile": (["x", "s"], {"s": [1 << 40]}),
    "ConstantOfShape": (["s"], {"s": [1 << 20, 1 << 20]}),
    "Range": (["a", "s", "b"], {"a": np.int64(0), "s": np.int64(1 << 40), "b": np.int64(1)}),
    "Pad": (["x", "s"], {"s": [1 << 40, 0]}),
    "Resize": (["x", "", "s"], {"s": np.float32([1e12])}),
    "OneHot": (["i", "s", "v"], {"i": [1], "s": np.int64(1 << 40), "v": np.float32([0, 1])}),
}


def _growing(op: str, *, through: bool) -> Case:
    def make(folder: Path) -> list[str]:
        inputs, constants = _GROWING[op]
        nodes = [helper.make_node(op, inputs, ["t"])]
        nodes += [helper.make_node("Cast", ["t"], ["u"], to=_FLOAT)]
        nodes += [helper.make_node("ReduceSum", ["u"], ["y"], keepdims=0)]
        if through:  # sizes come from a sum, which no inference follows far
            nodes.insert(0, helper.make_node("Mul", ["s0", "one"], ["s"]))
            kind = np.asarray(constants["s"]).dtype
            constants = {
                **{name: value for name, value in constants.items() if name != "s"},
                **{"s0": np.asarray(constants["s"]), "one": np.ones((), kind)},
            }
        return _save(folder, nodes, constants)

    return make


for _op in _GROWING:
    CASES[f"{_op} to terabytes"] = _growing(_op, through=False)
    CASES[f"{_op} to computed terabytes"] = _growing(_op, through=True)


@_case("45 Concats that double")
def _doubling(folder: Path) -> list[str]:
    nodes = [helper.make_node("Concat", [f"t{i}"] * 2, [f"t{i + 1}"], axis=0) for i in range(45)]
    nodes.insert(0, helper.make_node("Relu", ["x"], ["t0"]))
    return _save(folder, nodes, inputs=[_value("x", shape=["n"])], outputs=[_value("t45")])


# ----------------------------------------------------------------------- turns


def _loop(turns: int, *, is_constant: bool) -> Case:
    def make(folder: Path) -> list[str]:
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["c"], ["d"]),
                helper.make_node("Add", ["v", "v"], ["w"]),
            ],
            "body",
            [_value("i", _INT64, []), _value("c", _BOOL, []), _value("v", shape=[4])],
            [_value("d", _BOOL, []), _value("w", shape=[4])],
        )
        start = "one" if is_constant else "x"
        loop = helper.make_node("Loop", ["m", "", start], ["z"], body=body)
        nodes = [loop, helper.make_node("Add", ["x", "z"], ["y"])]
        return _save(folder, nodes, {"m": np.int64(turns), "one": np.ones(4, np.float32)})

    return make


CASES["a Loop of 2^62 turns"] = _loop(1 << 62, is_constant=False)
CASES["a Loop of 2^62 turns over constants"] = _loop(1 << 62, is_constant=True)


@_case("perm of ten million entries")
def _long_attribute(folder: Path) -> list[str]:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=list(range(10_000_000)))
    return _save(folder, [node])


# ----------------------------------------------------------------------- depth


def _nested(depth: int) -> Case:
    def make(folder: Path) -> list[str]:
        # by hand: to copy each body into the next would take the square
        inner = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y0"])], "b", [], [_value("y0")]
        ).SerializeToString()
        for level in range(1, depth + 1):
            node = _field(1, b"c") + _field(2, b"y%d" % level) + _field(4, b"If")
            for branch in (b"then_branch", b"else_branch"):
                content = inner if branch == b"then_branch" else _leaf(level)
                node += _field(5, _field(1, branch) + _field(6, content) + b"\xa0\x01\x05")
            output = _value(f"y{level}").SerializeToString()
            inner = _field(1, node) + _field(2, b"b") + _field(12, output)
        graph = onnx.GraphProto()
        graph.input.extend([_value("x", shape=[4]), _value("c", _BOOL, [])])
        whole = inner + graph.SerializeToString()
        opset = helper.make_opsetid("", 17).SerializeToString()
        (folder / "m.onnx").write_bytes(b"\x08\x08" + _field(7, whole) + _field(8, opset))
        return ["compress", "m.onnx", "out.onnx"]

    return make


def _leaf(level: int) -> bytes:
    node = helper.make_node("Identity", ["x"], [f"e{level}"])
    return helper.make_graph([node], "e", [], [_value(f"e{level}")]).SerializeToString()


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes."""
    size, length = len(content), b""
    while True:
        size, low = size >> 7, size & 127
        length += bytes([low | (128 if size else 0)])
        if not size:
            return bytes([number << 3 | 2]) + length + content


for _depth in (20, 90, 1_000, 20_000):
    CASES[f"If in If, {_depth:,} deep"] = _nested(_depth)


def _function(name: str, *callees: str) -> onnx.FunctionProto:
    names = ["x", *(f"t{i}" for i in range(len(callees) - 1)), "y"]
    nodes = [
        helper.make_node(callee, [names[i]], [names[i + 1]], domain="f")
        for i, callee in enumerate(callees)
    ] or [helper.make_node("Relu", ["x"], ["y"])]
    return helper.make_function("f", name, ["x"], ["y"], nodes, _IMPORTS)


def _calls(functions: Callable[[], list[onnx.FunctionProto]]) -> Case:
    def make(folder: Path) -> list[str]:
        node = helper.make_node("f0", ["x"], ["y"], domain="f")
        return _save(folder, [node], functions=functions())

    return make


def _levels(depth: int, width: int) -> list[onnx.FunctionProto]:
    inner = [_function(f"f{i}", *[f"f{i + 1}"] * width) for i in range(depth)]
    return [*inner, _function(f"f{depth}")]


def _looked_at(command: str, make: Case) -> Case:
    return lambda folder: [command, make(folder)[1]]


_levels_of_40 = _calls(lambda: _levels(40, 2))
CASES["functions that double 18 times"] = _calls(lambda: _levels(18, 2))
CASES["functions that double 40 times"] = _levels_of_40
for _command in ("groups", "exits"):
    CASES[f"functions that double 40 times, for {_command}"] = _looked_at(_command, _levels_of_40)
CASES["functions 3,000 deep"] = _calls(lambda: _levels(3_000, 1))
CASES["a function that calls itself"] = _calls(lambda: [_function("f0", "f0")])
CASES["functions in a circle"] = _calls(lambda: [_function("f0", "f1"), _function("f1", "f0")])


@_case("nodes in a circle")
def _cycle(folder: Path) -> list[str]:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    return _save(folder, nodes)


# ----------------------------------------------------------------------- names


@_case("names of a megabyte")
def _long_names(folder: Path) -> list[str]:
    long = "n" * (1 << 20)
    nodes = [
        helper.make_node("Relu", ["x"], [long], name=long),
        helper.make_node("NoSuchOperator", [long], ["y"], name="m" + long),
    ]
    return _save(folder, nodes)


@_case("names of a megabyte that run")
def _long_names_run(folder: Path) -> list[str]:
    long = "n" * (1 << 20)
    nodes = [
        helper.make_node("Relu", ["x"], [long], name=long),
        helper.make_node("Identity", [long], ["y"], name="m" + long),
    ]
    return [*_save(folder, nodes), "--explain", "--report", "r.json"]


@_case("control characters in names")
def _controls(folder: Path) -> list[str]:
    bad = "a\x1b[2J\x07\r\nonnxslim: all is well\x9b31m\u202e"
    nodes = [
        helper.make_node("Identity", ["x"], [bad], name=bad),
        helper.make_node("Identity", [bad], ["y"], name="\x1b]0;title\x07"),
    ]
    return [*_save(folder, nodes), "--explain", "--report", "r.txt"]


@_case("control characters in an operator")
def _control_operator(folder: Path) -> list[str]:
    return _save(folder, [helper.make_node("\x1b[2JNo\n", ["x"], ["y"], name="\x1b[31m")])


@_case("100,000 inputs and outputs")
def _many_ends(folder: Path) -> list[str]:
    count = 100_000
    nodes = [helper.make_node("Relu", [f"x{i}"], [f"y{i}"]) for i in range(count)]
    inputs = [_value(f"x{i}", shape=[1]) for i in range(count)]
    outputs = [_value(f"y{i}", shape=[1]) for i in range(count)]
    return _save(folder, nodes, inputs=inputs, outputs=outputs)


def _many_nodes(kind: str, count: int) -> Case:
    def make(folder: Path) -> list[str]:
        onnx.save(large_graph(kind, count), folder / "m.onnx")
        return ["compress", "m.onnx", "out.onnx", "--passes", "simplify"]

    return make


SECONDS_OF: dict[str, float] = {}
"""How long cases may take that are not hostile but large."""
for _kind in LARGE_GRAPHS:
    for _count in (10_000, 100_000):
        CASES[f"{_count:,} nodes {_kind}"] = _many_nodes(_kind, _count)
    SECONDS_OF[f"100,000 nodes {_kind}"] = 600
SECONDS_OF["100,000 inputs and outputs"] = 600  # 100,000 nodes, too


# -------------------------------------------------------- where data lie


def _external(location: Callable[[Path], str]) -> Case:
    def make(folder: Path) -> list[str]:
        node = helper.make_node("Add", ["x", "w"], ["y"])
        words = _save(folder, [node], {"w": np.zeros(4, np.float32)})
        model = onnx.load(folder / "m.onnx", load_external_data=False)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location(folder)), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        return words

    return make


def _linked(target: str) -> Callable[[Path], str]:
    def link(folder: Path) -> str:
        (folder / "w.data").symlink_to(target)
        return "w.data"

    return link


def _fifo(folder: Path) -> str:
    os.mkfifo(folder / "w.data")
    return "w.data"


CASES["external data on /dev/zero"] = _external(lambda _: "/dev/zero")
CASES["external data linked to /dev/zero"] = _external(_linked("/dev/zero"))
CASES["external data linked to a file elsewhere"] = _external(_linked("/etc/passwd"))
CASES["external data linked to itself"] = _external(_linked("w.data"))
CASES["external data in a pipe"] = _external(_fifo)
CASES["external data above the folder"] = _external(lambda _: "../../../etc/passwd")
CASES["external data in a folder above and back"] = _external(lambda f: f"../{f.name}/m.onnx")


@_case("a model that is a pipe")
def _pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "m.onnx")
    return ["compress", "m.onnx", "out.onnx"]


@_case("a model that is /dev/zero")
def _zero(folder: Path) -> list[str]:
    return ["compress", "/dev/zero", "out.onnx"]


# ------------------------------------------------------------------ samples


def _with_samples(folder: Path) -> list[str]:
    model = dense_net(8, 16, 4)
    onnx.save(model, folder / "m.onnx")
    return ["compress", "m.onnx", "out.onnx", "--calib"]


def _member(folder: Path, header: bytes, nbytes: int) -> list[str]:
    words = _with_samples(folder)
    with (
        zipfile.ZipFile(folder / "c.npz", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("x.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header)
        for _ in range(nbytes >> 20):
            stream.write(bytes(1 << 20))
    return [*words, "c.npz"]


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    content = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


@_case("an .npz of one row of 2 GB")
def _one_row(folder: Path) -> list[str]:
    return _member(folder, _header((1, 1 << 29)), 2 << 30)


@_case("an .npz that claims terabytes")
def _claims(folder: Path) -> list[str]:
    return _member(folder, _header((1 << 40, 8)), 1 << 20)


@_case("an .npz of negative sizes")
def _negative(folder: Path) -> list[str]:
    return _member(folder, _header((-1, 8)), 1 << 20)


@_case("a pickle in an .npz")
def _pickled(folder: Path) -> list[str]:
    words = _with_samples(folder)
    array = np.array([_Trap()], dtype=object)
    np.savez(folder / "c.npz", x=array)
    return [*words, "c.npz"]


class _Trap:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path("trapped").write_text, ("",))


@_case("a pickle that is called .npz")
def _pickle_file(folder: Path) -> list[str]:
    words = _with_samples(folder)
    (folder / "c.npz").write_bytes(pickle.dumps(_Trap()))
    return [*words, "c.npz"]


@_case("a folder of samples with links in a circle")
def _folder_loop(folder: Path) -> list[str]:
    words = _with_samples(folder)
    (folder / "c" / "inner").mkdir(parents=True)
    (folder / "c" / "inner" / "up").symlink_to(folder / "c")
    (folder / "c" / "self.npz").symlink_to("self.npz")
    return [*words, "c"]


@_case("a folder of samples with a pipe")
def _folder_pipe(folder: Path) -> list[str]:
    words = _with_samples(folder)
    (folder / "c").mkdir()
    os.mkfifo(folder / "c" / "a.npy")
    return [*words, "c"]


# ------------------------------------------------------------- packed files


@_case("a packed file of a gigabyte of zeros")
def _bomb(folder: Path) -> list[str]:
    weight = np.zeros((1 << 13, 1 << 13), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    _save(folder, [node], {"w": weight}, inputs=[_value("x", shape=[1, 1 << 13])])
    pack(folder / "m.onnx", folder / "m.onnxz")
    (folder / "m.onnx").unlink()
    return ["unpack", "m.onnxz", "out.onnx"]


@_case("a packed file cut off, with sizes changed")
def _cut(folder: Path) -> list[str]:
    _with_samples(folder)
    pack(folder / "m.onnx", folder / "m.onnxz")
    data = bytearray((folder / "m.onnxz").read_bytes())
    data[8:16] = b"\xff" * 8
    (folder / "m.onnxz").write_bytes(data[: len(data) - 100])
    return ["unpack", "m.onnxz", "out.onnx"]
