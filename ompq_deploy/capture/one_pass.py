"""All N samples as one batch through the instrumented graph: onnxruntime frees each activation as it goes.

The nodes run in the order of the file (`PRIORITY_BASED` without optimization), so a tensor's taps run right
behind it and the peak of memory is that of the plain network. Left to itself onnxruntime runs most taps last
and keeps all activations until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.capture.blocked import optimize
from ompq_deploy.capture.instrument import Reduction, instrument, views
from ompq_deploy.capture.statistics import Results, Statistics, read_grams, read_means, read_ranges
from ompq_deploy.capture.taps import Taps, View, tap
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.runtime.sessions import brief_options, start


def run_one_pass(graph: PreparedGraph, samples: Samples, threads: int) -> Statistics | None:
    """Statistics from one pass, or None where some layer's output does not have the samples on axis 0.

    Only if neither the first nor the last sample reaches a bound of Relu or Clip, a second pass reads the
    extremes of the tensors concerned.
    """
    if not batch_in_front(graph):
        return None
    optimized, layers, activations, wide = exposed(graph, threads)
    found = _run(one_pass_model(optimized, layers, activations, wide), graph, samples, threads)
    if any(found[tap("gram", view.name)].shape != (len(samples), len(samples)) for view in layers):
        return None
    open_ended = [view for view in activations if not reaches_bounds(view, found)]
    if open_ended:
        found |= _run(instrument(optimized, [(view, [Taps.range]) for view in open_ended]), graph, samples, threads)
    return Statistics(
        grams=read_grams(graph, found),
        ranges=read_ranges(graph.activations, found),
        wide_ranges=read_ranges(graph.wide, found),
        means=read_means(graph, found),
    )


def batch_in_front(graph: PreparedGraph) -> bool:
    """Whether axis 0 of every layer's output may be the batch, as far as shape inference could tell."""
    shapes = GraphIndex(graph.model).shapes
    return all(shapes.get(layer.output, (None,))[:1] in ((None,), (graph.batch,)) for layer in graph.layers)


def exposed(graph: PreparedGraph, threads: int = 0) -> tuple[onnx.ModelProto, list[View], list[View], list[View]]:
    """The graph as onnxruntime optimizes it, and how to read its layers' outputs, its activations and its wide tensors
    there."""
    outputs = dict.fromkeys(layer.output for layer in graph.layers)
    tensors = [name for name in (*graph.activations, *graph.wide) if name not in graph.input_names]
    computed = dict.fromkeys([*outputs, *tensors])
    optimized = optimize(graph.model, computed, threads)
    return (
        optimized.model,
        views(graph, outputs, optimized.blocked),
        views(graph, graph.activations, optimized.blocked),
        views(graph, graph.wide, optimized.blocked),
    )


def one_pass_model(
    model: onnx.ModelProto, layers: Sequence[View], activations: Sequence[View], wide: Sequence[View]
) -> onnx.ModelProto:
    """The model that returns the reductions of all layers, activations and wide tensors."""
    points: list[tuple[View, list[Reduction]]] = [(view, [Taps.gram]) for view in layers]
    points += [(view, [Taps.mean, Taps.probed_range]) for view in activations]
    return instrument(model, points + [(view, [Taps.range]) for view in wide])


def reaches_bounds(view: View, found: Results) -> bool:
    """Whether the samples probed reach every bound, so that no sample can hold a more extreme value."""
    return all(bound in found[tap(kind, view.name)] for kind, bound in view.bounds.items())


def _run(model: onnx.ModelProto, graph: PreparedGraph, samples: Samples, threads: int) -> dict[str, NDArray[Any]]:
    """All outputs of an instrumented model, by name."""
    options = brief_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    names = [value.name for value in model.graph.output]
    feed = {name: samples.inputs[name] for name in graph.input_names}
    return dict(zip(names, start(model, options).run(names, feed), strict=True))
