"""All N samples as one batch through the instrumented graph: onnxruntime frees each activation as it goes."""

from __future__ import annotations

import onnxruntime as ort

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.capture.blocked import optimize
from ompq_deploy.capture.instrument import instrument, views
from ompq_deploy.capture.session import session_options, start
from ompq_deploy.capture.statistics import Statistics, read_grams, read_means, read_ranges
from ompq_deploy.capture.taps import Taps


def run_one_pass(graph: PreparedGraph, samples: Samples, threads: int) -> Statistics | None:
    """Statistics from one pass, or None where some layer's output does not have the samples on axis 0."""
    outputs = dict.fromkeys(layer.output for layer in graph.layers)
    computed = dict.fromkeys([*outputs, *(name for name in graph.activations if name not in graph.input_names)])
    optimized = optimize(graph.model, computed, threads)
    model = instrument(
        optimized.model,
        [(view, [Taps.gram]) for view in views(graph, outputs, optimized.blocked)]
        + [(view, [Taps.mean, Taps.range]) for view in views(graph, graph.activations, optimized.blocked)],
    )
    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    session = start(model, options)
    names = [value.name for value in model.graph.output]
    feed = {name: samples.inputs[name] for name in graph.input_names}
    found = dict(zip(names, session.run(names, feed), strict=True))
    grams = read_grams(graph, found)
    if any(gram.shape != (len(samples), len(samples)) for gram in grams.values()):
        return None
    return Statistics(grams=grams, ranges=read_ranges(graph, found), means=read_means(graph, found))
