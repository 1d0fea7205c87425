"""HDF5 files, as three formats have them. Needs h5py: pip install 'worldmodels[imitation]'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.demonstration_files.recording import natural

ENDINGS = (".hdf5", ".h5")


def files_of(path: Path) -> list[Path]:
    """The file, or those below a folder, in the order of the numbers in their names."""
    found = [path] if path.is_file() else path.rglob("*")
    return sorted((file for file in found if file.suffix in ENDINGS), key=natural)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file's root group.

    Raises:
        ImportError: if h5py is not installed.
        ValueError: if it is no whole HDF5 file.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} needs h5py: pip install 'worldmodels[imitation]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is no readable HDF5 file: {error}") from error
    with file:
        yield file


def first_keys(path: Path) -> set[str]:
    """Names at the root of the first HDF5 file there; none if there is no file."""
    for file in files_of(path)[:1]:
        with opened(file) as root:
            return set(root)
    return set()


def arrays(group: Any) -> dict[str, Any]:
    """All data sets below a group, by their paths in it, still on disk."""
    found: dict[str, Any] = {}
    group.visititems(lambda name, item: found.update({name: item}) if hasattr(item, "dtype") else None)
    return found


def need(group: Any, names: Sequence[str], where: str) -> None:
    """A ValueError that names what is missing in a group."""
    if missing := [name for name in names if name not in group]:
        raise ValueError(f"{where}: there is no {missing[0]}; it has {', '.join(sorted(group)) or 'nothing'}")
