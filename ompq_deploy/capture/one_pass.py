"""All N samples as one batch through the instrumented graph: onnxruntime frees each activation as it goes.

The nodes run in the order of the file (`PRIORITY_BASED` without optimization), so a tensor's taps run right
behind it and the peak of memory is that of the plain network. Left to itself onnxruntime runs most taps last
and keeps all activations until then.
"""

from __future__ import annotations

import onnx
import onnxruntime as ort

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.capture.blocked import optimize
from ompq_deploy.capture.instrument import instrument, views
from ompq_deploy.capture.session import session_options, start
from ompq_deploy.capture.statistics import Statistics, read_grams, read_means, read_ranges
from ompq_deploy.capture.taps import Taps
from ompq_deploy.graph_index import GraphIndex


def run_one_pass(graph: PreparedGraph, samples: Samples, threads: int) -> Statistics | None:
    """Statistics from one pass, or None where some layer's output does not have the samples on axis 0."""
    if not batch_in_front(graph):
        return None
    model = instrumented(graph, threads)
    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    names = [value.name for value in model.graph.output]
    feed = {name: samples.inputs[name] for name in graph.input_names}
    found = dict(zip(names, start(model, options).run(names, feed), strict=True))
    grams = read_grams(graph, found)
    if any(gram.shape != (len(samples), len(samples)) for gram in grams.values()):
        return None
    return Statistics(grams=grams, ranges=read_ranges(graph, found), means=read_means(graph, found))


def batch_in_front(graph: PreparedGraph) -> bool:
    """Whether axis 0 of every layer's output may be the batch, as far as shape inference could tell."""
    shapes = GraphIndex(graph.model).shapes
    return all(shapes.get(layer.output, (None,))[:1] in ((None,), (graph.batch,)) for layer in graph.layers)


def instrumented(graph: PreparedGraph, threads: int = 0) -> onnx.ModelProto:
    """The graph as onnxruntime optimizes it, returning the reductions of all its layers and activations."""
    outputs = dict.fromkeys(layer.output for layer in graph.layers)
    computed = dict.fromkeys([*outputs, *(name for name in graph.activations if name not in graph.input_names)])
    optimized = optimize(graph.model, computed, threads)
    return instrument(
        optimized.model,
        [(view, [Taps.gram]) for view in views(graph, outputs, optimized.blocked)]
        + [(view, [Taps.mean, Taps.range]) for view in views(graph, graph.activations, optimized.blocked)],
    )
