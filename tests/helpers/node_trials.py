"""The node tests of the operators, as the onnx package has them, through every pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import onnx
from isolated import Stage
from model_trials import Findings, passes
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.case.utils import import_recursive
from rewrite_trials import Mode, Refused, Subject, Trial


@cache
def node_tests(module: str = "") -> dict[str, TestCase]:
    """Node tests by name: those of one module of the onnx package, or all, which takes seconds."""
    package = import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about what the tests are made of
        if module:
            import_module(f"{package.__name__}.{module}")
        else:
            import_recursive(package)
    return {case.name: case for case in package._NodeTestCases}


def try_node_test(name: str, stage: Stage = lambda text: None) -> Findings:
    """Every pass on the model of a node test, as it is and with inputs made constants."""
    return try_case(node_tests()[name], stage)


def try_case(case: TestCase, stage: Stage = lambda text: None) -> Findings:
    """Every pass on the models of a node test."""
    findings = Findings()
    for model, feeds, wanted in _variants(case):
        stage("original")
        try:
            subject = Subject(model.SerializeToString(), [feeds])
        except Refused as error:
            findings.refused = str(error)
            return findings
        if not _agree(subject.runs[0][1], wanted, case):
            findings.refused = "onnxruntime gives other outputs than the test wants"
            return findings
        for mode in (Mode.LOSSLESS, Mode.LOSSY):
            for pipeline in passes(lossless=mode is Mode.LOSSLESS):
                stage(f"{mode.value} {pipeline}")
                findings.pipelines += 1
                failure = subject.failure(pipeline, mode)
                if failure is not None:
                    trial = Trial(subject.model, (feeds,), (), pipeline, mode)
                    findings.found.append((trial, failure))
    return findings


def _variants(case: TestCase) -> Iterator[tuple[onnx.ModelProto, dict[str, Any], list[Any]]]:
    """The model with its inputs; with all but the first as initializers; with all of them."""
    assert case.model is not None
    assert case.data_sets is not None
    values, wanted = case.data_sets[0]
    values = [np.asarray(value) if isinstance(value, np.generic) else value for value in values]
    names = [info.name for info in case.model.graph.input]
    feeds = dict(zip(names, values, strict=False))
    yield case.model, feeds, list(wanted)
    if any(not isinstance(value, np.ndarray) for value in values):
        return
    for first_constant in {1, 0} if len(names) > 1 else {0}:
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for name in names[first_constant:]:
            model.graph.initializer.append(numpy_helper.from_array(feeds[name], name))
        del model.graph.input[first_constant:]
        yield model, {name: feeds[name] for name in names[:first_constant]}, list(wanted)


def _agree(found: list[Any], wanted: list[Any], case: TestCase) -> bool:
    """Whether outputs are those of the test, within its tolerances."""
    for a, b in zip(found, wanted, strict=True):
        if isinstance(b, list):
            if not isinstance(a, list) or not _agree(a, b, case):
                return False
        elif isinstance(a, np.ndarray) and a.dtype.kind == "f":
            if a.shape != np.shape(b) or not np.allclose(
                a, b, rtol=case.rtol, atol=case.atol, equal_nan=True
            ):
                return False
        elif not np.array_equal(a, b):
            return False
    return True
