"""Writing files so that a crash, a kill or a full disk never leaves half a file behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(OSError):
    """The disk, the quota or the file size limit is exhausted; the message is one line for the user."""


@contextmanager
def disk_errors(path: str | os.PathLike[str], *, then: str = "then go on with resume=true") -> Iterator[None]:
    """Turn "no space left" inside the block into one clear line about ``path``, which ends with what to do ``then``.

    Raises:
        DiskFullError: instead of an OSError that says the disk, quota or size limit is exhausted.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            reason = os.strerror(error.errno or 0)
            raise DiskFullError(f"cannot write {os.fspath(path)}: {reason}. Free some space, {then}") from error
        raise


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: the file; its folder is created. Text is written as UTF-8.
        data: the whole content.

    Raises:
        DiskFullError: if there is no room; the old file is then untouched.
    """
    target = Path(path)
    content = data.encode() if isinstance(data, str) else data
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(path: Path, *, is_waiting: bool) -> Iterator[None]:
    """Hold the lock file ``path``, alone among processes, or wait until it is free.

    Raises:
        BlockingIOError: if another process holds it and this one does not wait.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if is_waiting else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    # The empty file stays: deleting it would let a third process lock a new file of the same name.


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep a folder for this process: two that write the same run would mix their files.

    Raises:
        ValueError: if another process keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, is_waiting=False))
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing to {folder}: wait for it, or choose another run_dir"
            ) from error
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name that becomes ``path`` when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Numbers that are not finite become null, as JSON has none."""
    atomic_write(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
