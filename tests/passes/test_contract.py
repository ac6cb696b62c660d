"""What every registered pass must keep, whatever it does; its author need not ask for it."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
import pytest
from exporter_forms import FORMS, SAME, written
from tiny_models import TINY

from onnxslim.errors import UsageError
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline import registry
from onnxslim.pipeline.execution import run_pass
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Context, Pass, Preset
from onnxslim.records import Change, Fidelity, PassResult, Skip
from support import CONTEXT, apply, assert_equivalent, canonical, parse, random_feeds, run

NAMES = registry.names()
PASSES = [name for name in NAMES if not issubclass(registry.get(name), Preset)]
"""Passes that rewrite; presets are run by the manager, and tested through it."""


def decides_by_measuring(name: str) -> bool:
    """Whether a pass does nothing without calibration samples, whatever the model."""
    return registry.get(name)().needs_calibration() is not None


MEASURING = frozenset(filter(decides_by_measuring, PASSES))

EVERY_PASS = pytest.mark.parametrize("name", NAMES)
EVERY_REWRITE = pytest.mark.parametrize("name", PASSES)
EVERY_MODEL = pytest.mark.parametrize("tiny", TINY)


# ----------------------------------------------------------------- the class


@EVERY_PASS
def test_pass_is_made_without_arguments_and_printed_as_it_is_parsed(name: str) -> None:
    made = registry.get(name)()
    assert str(made) == name
    assert parse_pipeline(str(made)).passes == (made,)


@EVERY_PASS
def test_pass_is_frozen(name: str) -> None:
    made = registry.get(name)()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"  # type: ignore[misc]


@EVERY_PASS
def test_every_option_refuses_bad_values_with_name_range_and_value(name: str) -> None:
    owner = registry.get(name)
    for spec in owner.options():
        assert spec.help
        for value in spec.constraint.invalid():
            given = (value,) if spec.is_list else value
            with pytest.raises(UsageError) as caught:
                owner(**{spec.field: given})
            text = str(caught.value)
            assert f"`{spec.name}`" in text
            assert f"`{name}`" in text
            assert spec.constraint.describe() in text
            assert repr(value) in text or str(value) in text


@EVERY_PASS
def test_every_option_refuses_a_value_of_another_type(name: str) -> None:
    owner = registry.get(name)
    for spec in owner.options():
        with pytest.raises(UsageError, match=f"`{spec.name}`"):
            owner(**{spec.field: object()})


# ----------------------------------------------------------------- the documentation


@EVERY_PASS
def test_docstring_has_its_sections(name: str) -> None:
    text = importlib.import_module(registry.get(name).__module__).__doc__ or ""
    heads = [line.rstrip(":") for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    expected = ["Rewrite", "Why it is correct", "Declines when", "Fidelity", "Reference"]
    assert heads == expected


@EVERY_REWRITE
def test_example_in_the_docstring_does_what_it_says(name: str) -> None:
    owner = registry.get(name)
    if name in MEASURING:
        assert examples(owner) == []
        return
    before, after = examples(owner)
    source = parse(before)
    rewritten, result = apply(owner(), source)
    assert canonical(rewritten) == canonical(parse(after))
    assert result.changed
    if owner.fidelity is not Fidelity.LOSSY:
        assert_equivalent(source, rewritten, owner.fidelity)


def examples(owner: type[Pass]) -> list[str]:
    """The two fenced blocks of the Rewrite section; none of a pass that decides by measuring."""
    text = importlib.import_module(owner.__module__).__doc__ or ""
    section = text.partition("Rewrite:")[2].partition("Why it is correct:")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    wanted = 0 if owner.name in MEASURING else 2
    assert len(blocks) == wanted, "the Rewrite section has two fenced blocks: before and after"
    return blocks


# ----------------------------------------------------------------- what it does


@pytest.mark.slow
@EVERY_REWRITE
@EVERY_MODEL
def test_model_is_rewritten_as_promised(name: str, tiny: str) -> None:
    assert_keeps_promises(registry.get(name), TINY[tiny]())


def assert_keeps_promises(owner: type[Pass], source: onnx.ModelProto) -> PassResult:
    """One rewrite, asked everything: what it left alone, reported, repeats, and computes."""
    loaded = Model.load(source)
    before = loaded.to_bytes()
    names = set(names_in(loaded))
    model = loaded.clone()

    result = run_alone(owner(), model)

    after = model.to_bytes()
    assert loaded.to_bytes() == before, "the model that the copy was made of has changed"
    assert result.changed == (after != before), "a change was hidden, or reported but not made"
    names |= set(names_in(model))
    for item in (*result.changes, *result.skips):
        assert label(item) in names, item
        assert item.what if isinstance(item, Change) else item.why
    assert (result.fidelity or Fidelity.EXACT) <= owner.fidelity

    repeated = Model.load(source)
    assert run_alone(owner(), repeated) == result, "a repeat reports something else"
    assert repeated.to_bytes() == after, "a repeat gives other bytes"
    if owner.idempotent:
        assert run_alone(owner(), repeated).changes == (), "a second run changes something"
    if result.changed and owner.fidelity is not Fidelity.LOSSY:
        assert_equivalent(source, onnx.ModelProto.FromString(after), owner.fidelity)
    return result


def run_alone(rewrite: Pass, model: Model, context: Context = CONTEXT) -> PassResult:
    """Run a pass on `model` itself, with shapes inferred as the manager does."""
    infer_shapes(model)
    return run_pass(rewrite, model, context)


def label(item: Change | Skip) -> str:
    return item.node


def names_in(model: Model) -> Iterator[str]:
    """All that a change or skip may name: tensors, functions, the graph for the whole model."""
    yield model.graph.name
    yield from (function.name for function in model.graph.local_functions)
    for graph in walk_graphs(model.graph):
        yield from (constant.name for constant in graph.unused)
        for node in graph.nodes:
            yield from (tensor.name for tensor in (*node.inputs, *node.outputs))


# ----------------------------------------------------------------- what exporters write


@pytest.mark.slow
@EVERY_REWRITE
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_net_is_rewritten_as_promised(name: str, form: str) -> None:
    """Lossless passes keep the outputs; lossy ones do the same to every form, or say why not."""
    source, owner = written(form), registry.get(name)
    result_model, result = apply(owner(), source)
    if owner.fidelity is not Fidelity.LOSSY:
        if result.changed:
            assert_equivalent(source, result_model, owner.fidelity)
        return
    (plain,), changed = lossy_on_plain_net(name)
    if form in SAME:
        (new,) = run(result_model, random_feeds(source))
        np.testing.assert_allclose(new, plain, rtol=0, atol=1e-5)
        assert result.changed == changed
    elif changed and not result.changed:
        assert any(skip.why for skip in result.skips), "it does nothing, and does not say why"


@cache
def lossy_on_plain_net(name: str) -> tuple[list[np.ndarray], bool]:
    """The outputs of the plain net after a lossy pass, and whether the pass changed anything."""
    source = written("plain")
    model, result = apply(registry.get(name)(), source)
    return run(model, random_feeds(source)), result.changed


# ----------------------------------------------------------------- presets


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PASSES])
@EVERY_MODEL
def test_preset_keeps_outputs_and_never_enlarges_the_file(name: str, tiny: str) -> None:
    from onnxslim.pipeline.manager import PassManager

    source = TINY[tiny]()
    model = Model.load(source)
    before = model.to_bytes()
    after, reports = PassManager.parse(name).run(model, CONTEXT)
    assert model.to_bytes() == before
    assert len(after.to_bytes()) <= len(before)
    assert_equivalent(source, after.to_proto(), max(report.fidelity for report in reports))
