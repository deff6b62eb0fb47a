"""A checkpoint gives back what was saved, to the same run only, and a write that fails leaves the one before."""

from __future__ import annotations

from pathlib import Path

import pytest

from ompq_deploy.errors import BadInput

torch = pytest.importorskip("torch")
from ompq_deploy.files import checkpoint  # noqa: E402

RUN = {"model": "a", "settings": {"seed": 0}}
STATE = {"done": 3, "network": {"weight": torch.arange(6.0).reshape(2, 3)}}


def test_the_state_comes_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", RUN, STATE)
    found = checkpoint.load(tmp_path / "c", RUN)
    assert found["done"] == STATE["done"]
    assert torch.equal(found["network"]["weight"], STATE["network"]["weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_another_run_is_told_what_differs(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", RUN, STATE)
    with pytest.raises(BadInput, match=r"another run; they differ in: samples, settings"):
        checkpoint.load(tmp_path / "c", {**RUN, "settings": {"seed": 1}, "samples": "b"})


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_a_damaged_file_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(BadInput, match="no checkpoint"):
        checkpoint.load(tmp_path / "c", RUN)


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "c", RUN, STATE)

    def full(value: object, stream: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadInput, match="No space left"):
        checkpoint.save(tmp_path / "c", RUN, {"done": 4})
    assert checkpoint.load(tmp_path / "c", RUN)["done"] == STATE["done"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path / "nowhere" / "c", RUN, STATE)
