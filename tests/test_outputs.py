"""The output folder: all files or none."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest

from ompq_deploy.errors import BadInput
from ompq_deploy.files.outputs import STAGING_PREFIX, OutputFolder


def test_files_appear_together_on_a_clean_exit(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as out:
        out.write("a", b"1")
        out.write_json("b.json", {"x": 1})
        assert not (tmp_path / "out" / "a").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "b.json"]


def test_a_failed_run_leaves_the_old_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail() -> None:
        with OutputFolder(tmp_path) as out:
            out.write("a", b"new")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_files_of_an_earlier_run_go_when_the_new_ones_appear_and_not_before(tmp_path: Path) -> None:
    def run(fails: bool) -> None:
        with OutputFolder(tmp_path) as out:
            out.supersede(("a", "b", "missing"))
            out.write("a", b"new")
            assert not fails

    for name in ("a", "b", "mine"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(AssertionError):
        run(fails=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "mine"]
    run(fails=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "mine": b"old"}


def test_a_failed_run_removes_the_folder_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), OutputFolder(tmp_path / "new"):
        raise RuntimeError
    assert not (tmp_path / "new").exists()


def test_what_a_killed_run_left_is_removed_and_what_another_is_writing_stays(tmp_path: Path) -> None:
    killed = tmp_path / f"{STAGING_PREFIX}killed"
    killed.mkdir()
    (killed / "model").write_bytes(b"half")
    (tmp_path / "checkpoint").write_bytes(b"kept")
    with OutputFolder(tmp_path) as first, OutputFolder(tmp_path) as second:
        assert not killed.exists()
        first.write("a", b"1")
        second.write("b", b"2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "checkpoint"]


def test_a_folder_that_has_no_lock_yet_is_not_taken_for_one_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run enters while the first is between making its folder and locking it."""
    made, entered = threading.Event(), threading.Event()
    really = tempfile.mkdtemp

    def slow(*arguments: object, **settings: object) -> str:
        place = str(really(*arguments, **settings))
        made.set()
        entered.wait(0.3)
        return place

    def second() -> None:
        made.wait()
        with OutputFolder(tmp_path):
            entered.set()

    monkeypatch.setattr(tempfile, "mkdtemp", slow)
    other = threading.Thread(target=second)
    other.start()
    with OutputFolder(tmp_path) as first:
        other.join()
        first.write("a", b"1")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_unwritable_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match="cannot write"), OutputFolder(tmp_path / "file" / "out"):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_bad_input(tmp_path: Path) -> None:
    def fill() -> None:
        with OutputFolder(tmp_path / "out") as out:
            os.symlink("/dev/full", out.write("x", b"").with_name("model"))
            out.write("model", b"x" * 100_000)

    with pytest.raises(BadInput, match="No space left"):
        fill()
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_never_reach_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"), OutputFolder(tmp_path / "out") as out:
        out.write_json("a.json", {"x": float("nan")})
