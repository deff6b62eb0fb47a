# Two commands for a bare clone; both do all set-up themselves.
#   make demo   quantize the bundled network, build its engine, print the table
#   make test   ruff, mypy, pytest
# And the tests that need torch, which the default install leaves out (a large download on most machines):
#   make test-torch

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := examples/demo

.PHONY: demo test test-torch install clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[rtx,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/ompq-deploy $(DEMO)/cifar10_resnet20w.onnx --size 300KB --preprocess torchvision \
	    --calib $(DEMO)/calib.npz --samples 128 --eval $(DEMO)/eval.npz --out demo.ompq

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-torch: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[torch]"
	$(BIN)/python -m pytest tests/test_torch_graph.py tests/test_metrics.py tests/test_contest.py \
	    tests/test_fake_quant.py tests/test_finetune.py tests/test_finetune_parts.py tests/test_heads.py \
	    tests/test_reconstruct.py tests/test_reconstruct_blocks.py \
	    tests/test_fisher.py tests/test_fisher_use.py tests/test_checkpoint.py

clean:
	rm -rf $(VENV) demo.ompq
