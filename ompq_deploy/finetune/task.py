"""From a run's settings to what `loop.train` needs."""

from __future__ import annotations

from dataclasses import asdict

import torch

from ompq_deploy.artifacts import PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.augment import chosen_augmentation
from ompq_deploy.calib import Preprocess, input_specs
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import Heads
from ompq_deploy.finetune.batches import Batches
from ompq_deploy.finetune.data import load_training
from ompq_deploy.finetune.distributed import World
from ompq_deploy.finetune.loop import Task
from ompq_deploy.finetune.objective import Objective
from ompq_deploy.finetune.settings import CHECKPOINT_FILE, FinetuneSettings
from ompq_deploy.graph.index import GraphIndex


def make_task(
    start: QuantizedGraph, samples: Samples, settings: FinetuneSettings, world: World, preprocess: Preprocess | None
) -> Task:
    """The training task of a run. Raises BadInput for data and settings that do not fit the model."""
    graph, training = start.graph, settings.training
    heads = find_heads(graph, samples, settings.threads)
    if not heads.classifier and training.distill < 1:
        raise BadInput(
            "the model is no classifier, so labels say nothing about its outputs",
            where="--distill",
            fix="train towards the float network: --distill 1",
        )
    _check_batch(graph, training.batch, world)
    data = load_training(
        settings.train,
        input_specs(graph.model),
        preprocess=preprocess,
        labelled=training.distill < 1,
        classes=_classes(graph, heads),
        hold_out=training.hold_out,
        seed=training.seed,
        unit=(graph.batch or 1) * (world.size if graph.batch else 1),
    )
    if len(data.training) < training.batch:
        raise BadInput(
            f"{len(data.training)} training samples make no batch of {training.batch}",
            where="--batch",
            fix="lower --batch, or give more data",
        )
    augment = chosen_augmentation(training.augment, data.layout)
    return Task(
        start=start,
        batches=Batches(data=data, world=world, size=training.batch, augment=augment, seed=training.seed),
        objective=_objective(heads, training.distill, world.device),
        settings=training,
        checkpoint=settings.out / CHECKPOINT_FILE,
        run={
            "model_sha256": graph.sha256,
            "bits": [q.bits for q in start.layers],
            "start": str(settings.start) if settings.start else "the plan",
            "data": [str(path) for path in settings.train],
            "data_sha256": data.sha256,
            "training_samples": len(data.training),
            "held_out_samples": len(data.held_out),
            "preprocess": asdict(preprocess) if preprocess else None,
            "settings": {**training.recorded(), "augment": augment},
        },
    )


def _classes(graph: PreparedGraph, heads: Heads) -> int | None:
    return GraphIndex(graph.model).shapes[heads.tensors[0]][1] if heads.classifier else None


def _check_batch(graph: PreparedGraph, batch: int, world: World) -> None:
    unit = (graph.batch or 1) * world.size
    if batch % unit:
        raise BadInput(
            f"a batch of {batch} cannot be shared out in pieces of {graph.batch or 1} to {world.size} process(es)",
            where="--batch",
            fix=f"give a multiple of {unit}",
        )


def _objective(heads: Heads, distill: float, device: torch.device) -> Objective:
    if heads.classifier:
        return Objective(heads, distill)
    return Objective(heads, 1.0, [torch.from_numpy(w).to(device) for w in heads.root_weights])
