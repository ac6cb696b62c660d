"""Outputs that are joined from values of different kinds: which stretch is which."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.output_parts import output_parts
from onnxslim.io.model import Model
from support import parse

HEAD = '<opset_import: ["" : 17]>'
TWO = """
    b = Mul (x, two)
    s = Sigmoid (x)
"""


def labels(text: str) -> list[str]:
    """Of the parts of the only output of a graph."""
    parts = output_parts(Model.load(parse(f"{HEAD}\n{text}")))
    assert set(parts) <= {"y"}
    return [part.label for part in parts.get("y", ())]


@pytest.mark.parametrize(
    ("shape", "nodes", "found"),
    [
        ("N,8,20", "y = Concat <axis = 1> (b, s)", ["y[:, :4]", "y[:, 4:8]"]),
        ("N,8,20", "j = Concat <axis = -2> (b, s) y = Identity (j)", ["y[:, :4]", "y[:, 4:8]"]),
        ("N,12,20", "y = Concat <axis = 1> (b, s, b)", ["y[:, :4]", "y[:, 4:8]", "y[:, 8:12]"]),
        (
            "N,20,8",
            "j = Concat <axis = 1> (b, s) y = Transpose <perm = [0, 2, 1]> (j)",
            ["y[:, :, :4]", "y[:, :, 4:8]"],
        ),
        (
            "N,12,20",
            "j = Concat <axis = 1> (b, s) y = Concat <axis = 1> (x, j)",
            ["y[:, :4]", "y[:, 4:8]", "y[:, 8:12]"],
        ),
        ("N,8,20", "y = Concat <axis = 1> (b, b)", []),  # of one kind
        ("N,8,20", "j = Concat <axis = 1> (b, s) y = Relu (j)", []),  # does not end in the join
        ("M,4,20", "y = Concat <axis = 0> (b, s)", []),  # samples
        ("20,8,N", "j = Concat <axis = 1> (b, s) y = Transpose (j)", ["y[:, :4]", "y[:, 4:8]"]),
        ("8,20,N", "j = Concat <axis = 1> (b, s) y = Transpose <perm = [1, 2, 0]> (j)", []),
    ],
)
def test_a_join_is_found_behind_what_only_moves_data(
    shape: str, nodes: str, found: list[str]
) -> None:
    text = f"g (float[N,4,20] x) => (float[{shape}] y) <float two = {{2.0}}> {{ {TWO} {nodes} }}"
    assert labels(text) == found


@pytest.mark.parametrize(
    ("target", "shape", "found"),
    [
        ("{0, 2, 10, 8}", "N,2,10,8", ["y[:, :, :, :4]", "y[:, :, :, 4:8]"]),
        ("{0, 20, 4, 2}", "N,20,4,2", []),  # cuts the axis of the join
        ("{0, -1}", "N,160", []),  # mixes it with another
    ],
)
def test_a_reshape_is_passed_where_it_keeps_the_axis(
    target: str, shape: str, found: list[str]
) -> None:
    size = target.count(",") + 1
    text = f"""g (float[N,20,4] x) => (float[{shape}] y)
        <float two = {{2.0}}, int64[{size}] to = {target}> {{
        {TWO}
        j = Concat <axis = -1> (b, s)
        y = Reshape (j, to)
    }}"""
    assert labels(text) == found


def test_levels_of_a_pyramid_share_the_parts_that_each_of_them_has() -> None:
    text = """g (float[N,20,2] x, float[N,80,2] z) => (float[N,100,4] y) <float two = {2.0}> {
        a = Mul (x, two) b = Sigmoid (x) c = Mul (z, two) d = Sigmoid (z)
        fine = Concat <axis = 2> (a, b)
        coarse = Concat <axis = 2> (c, d)
        y = Concat <axis = 1> (fine, coarse)
    }"""
    assert labels(text) == ["y[:, :, :2]", "y[:, :, 2:4]"]


def test_layers_of_different_width_give_values_of_different_kinds() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,{0},8,8] y)
        <float[4,3,1,1] v = {{{1}}}, float[{2},3,1,1] w = {{{3}}}> {{
        a = Conv (x, v) b = Conv (x, w) y = Concat <axis = 1> (a, b)
    }}"""
    ones = [", ".join(["1.0"] * 3 * size) for size in (4, 2)]
    assert labels(text.format(6, ones[0], 2, ones[1])) == ["y[:, :4]", "y[:, 4:6]"]
    assert labels(text.format(8, ones[0], 4, ones[0])) == []


def test_a_size_that_is_not_known_leaves_the_last_part_open() -> None:
    text = """g (float[N,4] x, float[N,M] z) => (float[N,K] y) {
        s = Sigmoid (z)
        y = Concat <axis = 1> (ORDER)
    }"""
    assert labels(text.replace("ORDER", "x, s")) == ["y[:, :4]", "y[:, 4:]"]
    assert labels(text.replace("ORDER", "s, x")) == []


def test_parts_cover_the_output_once() -> None:
    text = f"""{HEAD}
    g (float[2,3,4] x) => (float[2,3,13] y) <float two = {{2.0}}, int64[1] pad = {{2}}> {{
        a = Sigmoid (x) b = Mul (x, two) c = Tanh (x)
        i = ReduceSum <keepdims = 1> (x, pad)
        j = Concat <axis = 2> (a, b)
        k = Concat <axis = 2> (j, i)
        y = Concat <axis = -1> (k, c)
    }}"""
    (parts,) = output_parts(Model.load(parse(text))).values()
    assert len(parts) == 4
    seen = np.zeros((2, 3, 13), int)
    for part in parts:
        part.of(seen)[:] += 1
    assert (seen == 1).all()


def test_hostile_graphs_are_not_followed_for_ever() -> None:
    doubled = " ".join(f"j{i + 1} = Concat <axis = 2> (j{i}, j{i})" for i in range(12))
    text = f"""g (float[N,4,1] x) => (float[N,4,8192] y) <float two = {{2.0}}> {{
        {TWO} j0 = Concat <axis = 2> (b, s) {doubled} y = Identity (j12)
    }}"""
    assert labels(text) == []  # thousands of parts
    chain = " ".join(f"c{i + 1} = Identity (c{i})" for i in range(3000))
    text = f"""g (float[N,4] x) => (float[N,8] y) <float two = {{2.0}}> {{
        {TWO} c0 = Concat <axis = 1> (b, s) {chain} y = Identity (c3000)
    }}"""
    assert labels(text) == []
