"""The output folder. Files are staged under a temporary name and renamed when the run is done.

Renaming within one folder is atomic, so a reader sees the old file or the new one, never half of one; an
interrupted run removes its staging folder and leaves the earlier results as they were. A run holds a lock on its
staging folder while it lives, in whichever container that is; the next one removes those that killed runs left.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx

from ompq_deploy.errors import BadInput

STAGING_PREFIX = ".unfinished-"


class OutputFolder:
    """A context manager over `path`: what is written inside appears there together, on a clean exit only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._created = not path.exists()
        self._staging: Path | None = None
        self._lock: int | None = None
        self._leaving: tuple[str, ...] = ()

    def __enter__(self) -> OutputFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                _remove_abandoned(self.path)
                self._staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.path))
                self._lock = _lock(self._staging)
        except OSError as e:
            raise _cannot_write(self.path, e) from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        staging = self._entered()
        try:
            if kind is None:
                self._commit()
        except OSError as e:
            raise _cannot_write(self.path, e) from e
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
            if kind is not None and self._created and not any(self.path.iterdir()):
                self.path.rmdir()

    def _commit(self) -> None:
        """Rename everything, or, where a folder stands in the way, nothing."""
        staged = self.staged()
        for file in staged:
            if (self.path / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{file.name} is a folder there")
        with _signals_wait():
            for file in staged:
                os.replace(file, self.path / file.name)
            for name in set(self._leaving) - {file.name for file in staged}:
                (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> Path:
        """Stage a file, replacing one staged before; its path until the folder is committed."""
        target = self._entered() / name
        try:
            with target.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as e:
            raise _cannot_write(self.path / name, e) from e
        return target

    def write_json(self, name: str, document: Any) -> Path:
        """Stage a JSON document; numbers that are not finite are an error."""
        return self.write(name, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())

    def write_model(self, name: str, model: onnx.ModelProto) -> Path:
        """Stage an ONNX model in one file."""
        return self.write(name, model.SerializeToString())

    def supersede(self, names: Iterable[str]) -> None:
        """On a clean exit remove those of an earlier run's files that are not written anew."""
        self._leaving = tuple(names)

    def staged(self) -> list[Path]:
        """The files staged so far, in order of their names."""
        return sorted(self._entered().iterdir())

    def _entered(self) -> Path:
        assert self._staging is not None, "OutputFolder is used inside its with block"
        return self._staging


def _remove_abandoned(folder: Path) -> None:
    """Remove the staging folders whose run is gone."""
    for staging in folder.glob(f"{STAGING_PREFIX}*"):
        if (lock := _lock(staging)) is not None:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect behind it, where the platform can make them wait."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other runs from taking a staging folder that has no lock yet for one left behind."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock on a folder until it is closed or its process ends; None where another holds it
    and this is not to `wait`, or the platform or the file system has no such locks."""
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def _cannot_write(path: Path, error: OSError) -> BadInput:
    return BadInput(
        f"cannot write: {error.strerror or error}",
        where=str(path),
        fix="give a writable --out with enough room; nothing was left half-written",
    )
