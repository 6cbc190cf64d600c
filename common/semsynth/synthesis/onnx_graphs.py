"""ONNX graphs of networks: written by torch, freed of what the machine says of itself, compared with the network."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import InputError, is_out_of_memory

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4
"""Largest difference of a graph from its network, of the largest value that the network gives where that is above 1."""
ANY_SIZE = {2: "H", 3: "W", 4: "D"}
"""Axes of a volume ``(B, C, H, W, D)`` that have any length, and what the graph calls it."""


@dataclass(frozen=True)
class Graph:
    """What becomes one graph.

    Attributes:
        module: its parameters on the CPU, in float32.
        inputs: tensors, or tuples of them, that it is traced with.
        names: names of the inputs, a tuple of tensors counted one by one.
        outputs: names.
        others: further inputs that it is compared on; where there are some, the first input may have any size.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    names: Sequence[str]
    outputs: Sequence[str]
    others: Sequence[tuple[Any, ...]] = ()


def check_packages() -> None:
    """Raise where a package is missing that ONNX needs.

    Raises:
        InputError: naming all that are missing, and the extra.
    """
    missing = [name for name in PACKAGES if not _there(name)]
    if missing:
        raise InputError(f"--format onnx needs {', '.join(missing)}, not found here; pip install 'semsynth[onnx]'")


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a finder that keeps it out
        return False


@torch.no_grad()
def onnx_graph(graph: Graph, about: Mapping[str, Any]) -> tuple[bytes, float]:
    """One graph as the content of an ``.onnx`` file, and its largest difference from the network.

    Args:
        graph: the graph, see there.
        about: content of the file's ``metadata_props``; values that are no text are written as JSON.

    Raises:
        InputError: packages that are missing, a network that ONNX cannot hold, or a graph that gives something else.
    """
    check_packages()
    import onnx

    module = graph.module.eval()
    sizes = {0: ANY_SIZE} if graph.others else {}
    shapes = [sizes.get(number, _fixed(value)) for number, value in enumerate(graph.inputs)] if sizes else None
    try:
        with _quietly():
            program = torch.onnx.export(
                module, graph.inputs, dynamo=True, input_names=list(graph.names), output_names=list(graph.outputs),
                dynamic_shapes=shapes, custom_translation_table=_operators(), verbose=False,
            )  # fmt: skip
    except Exception as error:  # of any kind that tracing a network raises
        if is_out_of_memory(error):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise InputError(f"{type(module).__name__}: ONNX cannot hold this network ({reason})") from error
    assert program is not None
    proto = program.model_proto
    _without_traces(proto.graph)
    for function in proto.functions:
        _without_traces(function)
    if graph.others:
        for axis, name in ANY_SIZE.items():
            proto.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content, _compare(graph, content)


def _fixed(value: Any) -> Any:
    return tuple(None for _ in value) if isinstance(value, tuple) else None


def _compare(graph: Graph, content: bytes) -> float:
    """The largest difference in ONNX Runtime, of all inputs.

    Raises:
        InputError: where one is above :data:`TOLERANCE`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it says stands in the exception too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for inputs in (graph.inputs, *graph.others):
        wanted = graph.module(*inputs)
        size = " × ".join(str(length) for length in inputs[0].shape[2:])
        given = {name: value.numpy() for name, value in zip(graph.names, _flat(inputs), strict=True)}
        try:
            found = session.run(None, given)
        except Exception as error:  # onnxruntime's own classes have no common one
            raise InputError(f"the graph does not run on {size} voxels: {error}; give --size for one size") from error
        for one, other in zip(found, _flat((wanted,)), strict=True):
            same = one.shape == tuple(other.shape)
            difference = float((torch.from_numpy(one) - other).abs().max()) if same else float("inf")
            if not difference <= TOLERANCE * max(1.0, float(other.abs().max())):
                raise InputError(
                    f"the graph gives something else than the network on {size} voxels, by up to {difference:.2g}; "
                    + ("give --size for a graph of one size" if graph.others else "use the bundle itself")
                )
            largest = max(largest, difference)
    return largest


def _flat(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        yield from value if isinstance(value, tuple | list) else (value,)


def _without_traces(graph: Any) -> None:
    """Remove what torch notes of its own work, with paths of the machine, from a graph and those within it."""
    del graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _without_traces(inner)
    for value in (*getattr(graph, "value_info", ()), *getattr(graph, "initializer", ())):
        del value.metadata_props[:]
        value.doc_string = ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's notes on packages that are not there and its advice to its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# ---- what torch has and ONNX has not

_NEAR = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
         -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
_FAR = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
        1.00167406, 2.83297682)  # fmt: skip


def _operators() -> dict[Any, Any]:
    """The inverse of the error function, in which Gaussian noise is made of uniform noise.

    Giles, "Approximating the erfinv function", GPU Computing Gems, 2011: two polynomials of log(1 − x²), in float32
    within a few units of the last place.
    """
    from onnxscript import opset20 as op

    def polynomial(x: Any, factors: Sequence[float]) -> Any:
        value = op.Add(op.Mul(x, factors[0]), factors[1])
        for factor in factors[2:]:
            value = op.Add(op.Mul(value, x), factor)
        return value

    def inverse_error_function(x: Any) -> Any:
        w = op.Neg(op.Log(op.Mul(op.Sub(1.0, x), op.Add(1.0, x))))
        near = polynomial(op.Sub(w, 2.5), _NEAR)
        far = polynomial(op.Sub(op.Sqrt(op.Max(w, 5.0)), 3.0), _FAR)
        return op.Mul(op.Where(op.Less(w, 5.0), near, far), x)

    return {torch.ops.prims.erf_inv.default: inverse_error_function,
            torch.ops.aten.erfinv.default: inverse_error_function}  # fmt: skip
