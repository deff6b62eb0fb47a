"""Top-1 of the integer-only model, in both arithmetics, beside that of the Q/DQ model it is made from.

d = top-1 of the integer-only model less that of the Q/DQ model, in points, with its standard error over the images, of
which most count alike under both: both models round the same real numbers, and a network spreads the few results that
lie between two steps. Agreement is the share of images with one prediction. All weights are of one width, rounded to
nearest; grids are the defaults.

    python benchmarks/faithfulness.py --bits 8 6 --table faithfulness.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from integer_speed import SHARED, quantized_case
from networks import CASES, Case, selected

from ompq_deploy.calib import LabelledSet, input_specs, load_labelled
from ompq_deploy.evaluate.accuracy import evaluate, label_ranks
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import ARITHMETICS
from ompq_deploy.export.qdq import qdq_model

HEADER = """\
| network | bits | images | float | Q/DQ | dyadic: d | agree | tensorrt: d | agree |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with models/ and data/")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6])
    parser.add_argument("--models", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--table", type=Path, help="write the table here")
    arguments = parser.parse_args()
    rows = [HEADER]
    for case in selected(arguments.models, {}):
        images = labelled_images(case, arguments.shared)
        for bits in arguments.bits:
            rows.append(row(case, images, arguments.shared, bits))
            print(rows[-1], flush=True)
    if arguments.table:
        arguments.table.write_text("\n".join(rows) + "\n")


def labelled_images(case: Case, shared: Path) -> list[LabelledSet]:
    """All evaluation files of a network."""
    specs = input_specs(onnx.load(shared / "models" / case.model))
    return [
        load_labelled(shared / "data" / file, specs, count=count, preprocess=case.preprocess)
        for file, count in case.evaluation
    ]


def row(case: Case, images: list[LabelledSet], shared: Path, bits: int) -> str:
    """One line of the table."""
    quantized, _ = quantized_case(case, shared, bits)
    models = {"float": quantized.graph.model, "qdq": qdq_model(quantized)}
    models |= {name: integer_model(lower(quantized, name)) for name in ARITHMETICS}
    correct, predicted = {}, {}
    for name, model in models.items():
        correct[name], predicted[name] = predictions(model, images)
    cells = [case.name, str(bits), str(len(correct["float"]))]
    cells += [f"{100 * correct[name].mean():.2f}" for name in ("float", "qdq")]
    for name in ARITHMETICS:
        difference = 100 * (correct[name].astype(float) - correct["qdq"])
        error = difference.std() / np.sqrt(len(difference))
        agreement = 100 * np.mean(predicted[name] == predicted["qdq"])
        cells += [f"{difference.mean():+.2f} +- {error:.2f}", f"{agreement:.2f}"]
    return f"| {' | '.join(cells)} |"


def predictions(model: onnx.ModelProto, images: list[LabelledSet]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is predicted right, and its predicted class."""
    correct, predicted = [], []
    for data in images:
        logits = evaluate(model, data).logits
        correct.append(label_ranks(logits, data.labels) < 1)
        predicted.append(logits.argmax(axis=1))
    return np.concatenate(correct), np.concatenate(predicted)


if __name__ == "__main__":
    main()
