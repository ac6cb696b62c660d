"""What the outputs of a graph are: classes, embeddings, values, discrete."""

from __future__ import annotations

import re
from math import prod

import pytest

from onnxslim.analysis.output_kinds import output_kinds
from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.pipeline.output_words import parse_kinds, with_named
from onnxslim.records import OutputKind
from support import parse

CLASSES, EMBEDDING = OutputKind.CLASSES, OutputKind.EMBEDDING
HIDDEN, TOKENS = OutputKind.HIDDEN_STATES, OutputKind.TOKEN_LOGITS
VALUES, DISCRETE = OutputKind.VALUES, OutputKind.DISCRETE


def kinds_of(inputs: str, outputs: str, weights: str, body: str, opset: int = 17) -> list[str]:
    text = f"""<opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g ({inputs}) => ({outputs}) <{filled(weights)}> {{ {body} }}"""
    return list(output_kinds(Model.load(parse(text))).values())


def filled(weights: str) -> str:
    """Declarations with as many ones as they have elements."""

    def with_values(found: re.Match[str]) -> str:
        ones = ", ".join(["1"] * prod(map(int, found[1].split(","))))
        return f"float[{found[1]}] {found[2]} = {{{ones}}}"

    return re.sub(r"float\[([\d, ]+)\] (\w+)", with_values, weights)


W = "float[8, 5] w, float[5] b"
SQUARE = "float[8, 8] w, float[8] b"
WIDE = "float[8, 20] w, float[20] b"


@pytest.mark.parametrize(
    ("outputs", "weights", "body", "kind"),
    [
        ("float[N, 5] y", W, "y = Gemm (x, w, b)", CLASSES),
        ("float[N, 5] y", W, "m = MatMul (x, w) y = Add (b, m)", CLASSES),
        ("float[N, 5] y", W, "m = MatMul (x, w) y = Softmax (m)", CLASSES),
        ("float[N, 5] y", W, "m = Gemm (x, w, b) y = Sigmoid (m)", CLASSES),
        ("float[N, 20] y", WIDE, "y = MatMul (x, w)", CLASSES),  # wider than what it reads
        ("float[N, 5] y", W, "y = MatMul (x, w)", EMBEDDING),  # a projection
        ("float[N, 20] y", WIDE, "m = Gemm (x, w, b) y = Tanh (m)", EMBEDDING),
        ("float[N, 5] y", W, "m = Gemm (x, w, b) y = Tanh (m)", VALUES),  # such as angles
        ("float[N, 5] y", W, "m = Gemm (x, w, b) y = LpNormalization (m)", EMBEDDING),
        (
            "float[N, 5] y",
            W,
            "m = Gemm (x, w, b) n = ReduceL2 <axes = [1]> (m) y = Div (m, n)",
            EMBEDDING,
        ),
        (
            "float[N, 5] y",
            f"{W}, int64[1] a = {{1}}",
            "m = Gemm (x, w, b) e = Exp (m) s = ReduceSum (e, a) y = Div (e, s)",
            CLASSES,
        ),
        ("float[N, 8] y", SQUARE, "y = LayerNormalization (x, b, b)", EMBEDDING),
        ("float[N, 8] y", SQUARE, "y = Relu (x)", VALUES),
        ("float[N, 1] y", "float[8, 1] w, float[1] b", "y = Gemm (x, w, b)", VALUES),
        ("float[N, 5] boxes", W, "boxes = Gemm (x, w, b)", VALUES),  # a name decides on a head
        ("float[N, 5] sentence_embedding", W, "sentence_embedding = Gemm (x, w, b)", EMBEDDING),
        ("float[N, 5] boxes", W, "m = Gemm (x, w, b) boxes = Softmax (m)", CLASSES),  # not on this
        ("float[N, 5] y", W, '["/classifier/MatMul"] y = MatMul (x, w)', CLASSES),  # nor a layer's
        ("float[N, 5] y", "float[8, 5] score", "y = MatMul (x, score)", CLASSES),
        ("float[N, 5] y", "float[8, 5] feature", "y = MatMul (x, feature)", EMBEDDING),
        ("float[N, 8] logits", SQUARE, "logits = LayerNormalization (x, b, b)", EMBEDDING),
        ("int64[N, 1] y", W, "m = Gemm (x, w, b) y = ArgMax <axis = 1> (m)", DISCRETE),
        ("bool[N, 8] y", SQUARE, "y = Greater (x, b)", DISCRETE),
    ],
)
def test_of_rows(outputs: str, weights: str, body: str, kind: OutputKind) -> None:
    assert kinds_of("float[N, 8] x", outputs, weights, body) == [kind]


@pytest.mark.parametrize(
    ("outputs", "weights", "body", "kind"),
    [
        ("float[N, T, 20] y", WIDE, "y = MatMul (x, w)", CLASSES),  # token scores, T open
        ("float[N, T, 5] y", W, "m = MatMul (x, w) y = Add (m, b)", CLASSES),  # labels of tokens
        ("float[N, T, 8] y", SQUARE, "m = MatMul (x, w) y = Add (m, b)", HIDDEN),
        ("float[N, T, 8] y", SQUARE, "y = LayerNormalization (x, b, b)", HIDDEN),
        (
            "float[N, T, 8] y",
            SQUARE,
            "n = LayerNormalization (x, b, b) m = MatMul (n, w) y = Add (x, m)",
            HIDDEN,  # the residual stream
        ),
        (
            "float[N, T, 8] y",
            SQUARE,
            "n = LayerNormalization (x, b, b) m = MatMul (n, w) y = Sum (x, m)",
            HIDDEN,  # as simplify writes it
        ),
        (
            "float[N, 8] y",
            SQUARE,
            "n = LayerNormalization (x, b, b) y = ReduceMean <axes = [1], keepdims = 0> (n)",
            EMBEDDING,
        ),
        (
            "float[N, 8] y",
            f"{SQUARE}, int64 zero = {{0}}",
            "n = LayerNormalization (x, b, b) y = Gather <axis = 1> (n, zero)",
            EMBEDDING,  # the first token
        ),
        (
            "float[N, 5] y",
            W,
            "m = MatMul (x, w) l = Add (m, b) y = ReduceMean <axes = [1], keepdims = 0> (l)",
            CLASSES,  # scores of frames, averaged
        ),
        ("float[N, 8, T] y", SQUARE, "y = Transpose <perm = [0, 2, 1]> (x)", VALUES),
        (
            "float[N, 5, T] y",
            W,
            "m = MatMul (x, w) l = Add (m, b) y = Transpose <perm = [0, 2, 1]> (l)",
            VALUES,  # classes are not along the last axis
        ),
    ],
)
def test_of_sequences(outputs: str, weights: str, body: str, kind: OutputKind) -> None:
    assert kinds_of("float[N, T, 8] x", outputs, weights, body) == [kind]


@pytest.mark.parametrize(
    ("outputs", "body", "kind"),
    [
        (
            "float[N, 5] y",
            "c = Conv (x, w, b) p = GlobalAveragePool (c) y = Flatten (p)",
            CLASSES,  # the head is a convolution
        ),
        (
            "float[N, 5] y",
            "c = Conv (x, w, b) r = Relu (c) p = GlobalAveragePool (r) y = Flatten (p)",
            EMBEDDING,  # pooled features
        ),
        ("float[N, 5, 4, 4] y", "y = Conv (x, w, b)", VALUES),
        ("float[N, 5, 4, 4] y", "c = Conv (x, w, b) y = Softmax <axis = 1> (c)", VALUES),
    ],
)
def test_of_maps(outputs: str, body: str, kind: OutputKind) -> None:
    weights = "float[5, 3, 1, 1] w, float[5] b"
    assert kinds_of("float[N, 3, 4, 4] x", outputs, weights, body) == [kind]


def test_a_head_beside_class_scores_holds_values() -> None:
    """Corners of boxes beside the probabilities of faces."""
    body = "m = Gemm (x, w, b) p = Softmax (m) q = Gemm (x, v, c)"
    weights = f"{W}, float[8, 4] v, float[4] c"
    found = kinds_of("float[N, 8] x", "float[N, 5] p, float[N, 4] q", weights, body)
    assert found == [CLASSES, VALUES]


def test_scores_whose_largest_is_another_output_are_classes() -> None:
    body = "y = MatMul (x, w) i = ArgMax <axis = -1> (y)"
    found = kinds_of("float[N, 8] x", "float[N, 5] y, int64[N, 1] i", W, body)
    assert found == [CLASSES, DISCRETE]


def test_softmax_of_old_opsets_is_along_the_second_axis() -> None:
    body = "m = Gemm (x, w, b) y = Softmax (m)"
    assert kinds_of("float[N, 8] x", "float[N, 5] y", W, body, opset=11) == [CLASSES]
    body = "y = Softmax (x)"
    assert kinds_of("float[N, 3, 8] x", "float[N, 3, 8] y", W, body, opset=11) == [VALUES]


TABLE = "float[12, 8] table"
READ = "h = Gather (table, ids)"


@pytest.mark.parametrize(
    ("outputs", "weights", "body", "kind"),
    [
        (  # the table is the head, turned
            "float[N, T, 12] y",
            "",
            "w = Transpose <perm = [1, 0]> (table) y = MatMul (h, w)",
            TOKENS,
        ),
        (
            "float[N, T, 12] y",
            "float[8, 12] w, float[12] b",
            "r = Relu (h) m = MatMul (r, w) l = Add (m, b) y = LogSoftmax <axis = -1> (l)",
            TOKENS,
        ),
        (  # bounded logits
            "float[N, T, 12] y",
            "float[8, 12] w, float c = {1}",
            "m = MatMul (h, w) d = Div (m, c) t = Tanh (d) y = Mul (t, c)",
            TOKENS,
        ),
        (  # a head in 4 bits
            "float[N, T, 12] y",
            "float[24, 8] q, float[24] s, float[12] b",
            "y = com.microsoft.MatMulNBits <K = 8, N = 12, bits = 4, block_size = 16> (h, q, s)",
            TOKENS,
        ),
        (  # of the last position alone
            "float[N, 12] y",
            "float[8, 12] w, int64 last = {1}",
            "l = Gather <axis = 1> (h, last) y = MatMul (l, w)",
            TOKENS,
        ),
        (  # other labels than tokens
            "float[N, T, 5] y",
            W,
            "m = MatMul (h, w) y = Add (m, b)",
            CLASSES,
        ),
        (  # as many values, which no head made
            "float[N, T, 12] y",
            "float[8, 12] w",
            "m = MatMul (h, w) y = Relu (m)",
            VALUES,
        ),
    ],
)
def test_scores_over_the_rows_of_the_table_of_tokens_are_those_of_tokens(
    outputs: str, weights: str, body: str, kind: OutputKind
) -> None:
    weights = ", ".join(filter(None, (TABLE, weights)))
    assert kinds_of("int64[N, T] ids", outputs, weights, f"{READ} {body}") == [kind]


def test_a_table_of_two_types_of_tokens_makes_no_vocabulary_of_two_classes() -> None:
    body = "h = Gather (table, ids) k = Gather (types, type) s = Add (h, k) y = MatMul (s, w)"
    weights = f"{TABLE}, float[2, 8] types, float[8, 2] w"
    inputs, outputs = "int64[N, T] ids, int64[N, T] type", "float[N, T, 2] logits"
    body = body.replace(" y =", " logits =")
    assert kinds_of(inputs, outputs, weights, body) == [CLASSES]


def test_a_column_of_a_dense_layer_holds_scores_of_positions_where_its_name_says_logits() -> None:
    body = """m = MatMul (x, w) h = Add (m, b) s, e = Split <axis = 2, num_outputs = 2> (h)
    NAME = Squeeze (s, last) end = Squeeze (e, last)"""
    weights = "float[8, 2] w, float[2] b, int64[1] last = {2}"
    for name, kind in (("start_logits", CLASSES), ("start", VALUES)):
        outputs = f"float[N, T] {name}, float[N, T] end"
        found = kinds_of("float[N, T, 8] x", outputs, weights, body.replace("NAME", name), 18)
        assert found == [kind, VALUES]


def test_caches_hold_values_and_a_row_for_each_sample_is_an_embedding() -> None:
    body = """h = Gather (table, ids) k = MatMul (h, w) present = Concat <axis = 1> (past, k)
    y = LayerNormalization (h, b, b) z = ReduceMean <axes = [1], keepdims = 1> (y)"""
    inputs = "int64[N, T] ids, float[N, P, 8] past"
    outputs = "float[N, T, 8] y, float[N, 1, 8] z, float[N, S, 8] present"
    found = kinds_of(inputs, outputs, f"{TABLE}, {SQUARE}", body)
    assert found == [HIDDEN, EMBEDDING, VALUES]


def test_branches_that_agree_say_what_the_result_is() -> None:
    body = """y = If (c) <
        then_branch = early () => (float[N, 5] a) { a = Gemm (x, w, b) },
        else_branch = late () => (float[N, 5] d) { e = Relu (x) d = Gemm (e, w, b) }
    >"""
    assert kinds_of("float[N, 8] x, bool c", "float[N, 5] y", W, body) == [CLASSES]
    other = body.replace("d = Gemm (e, w, b)", "f = Gemm (e, w, b) d = Relu (f)")
    assert kinds_of("float[N, 8] x, bool c", "float[N, 5] y", W, other) == [VALUES]


# ------------------------------------------------------------------- what a user says


def test_a_user_has_the_last_word() -> None:
    found = {"y": CLASSES, "a=b": VALUES}
    named = parse_kinds(["y=values", "a=b=embedding"])
    assert with_named(found, named) == {"y": VALUES, "a=b": EMBEDDING}


@pytest.mark.parametrize("text", ["y", "y=", "=classes", "y=discrete", "y=Classes"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be NAME=KIND, where KIND is one of classes"):
        parse_kinds([text])


def test_names_that_are_no_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="`logit`, which is no output"):
        with_named({"logits": CLASSES}, {"logit": VALUES})
    with pytest.raises(UsageError, match="holds no floats"):
        with_named({"ids": DISCRETE}, {"ids": CLASSES})
    with pytest.raises(UsageError, match="the kind of `y` twice"):
        parse_kinds(["y=values", "y=classes"])
