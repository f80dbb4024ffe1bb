"""Writing files so that a crash leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from clebsch.errors import ClebschError, did_you_mean


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``data`` under a temporary name beside ``path``, sync it, and rename it into place.

    Raises:
        OSError: the folder cannot be written, or the disk is full; ``path`` is then unchanged.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:  # which would tell of the temporary name
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:  # which would name no file
        Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path, suffix: str) -> None:
    """Remove what ``atomic_write`` leaves where a process is killed in the middle of it.

    Args:
        folder: passed over if it does not exist.
        suffix: of the files whose remains these are; no other process may be writing such there.
    """
    pattern = re.compile(rf"\..+{re.escape(suffix)}\.[a-z0-9_]{{8}}")  # tempfile adds the last part
    for path in folder.iterdir() if folder.is_dir() else ():
        if pattern.fullmatch(path.name):
            path.unlink(missing_ok=True)


def no_such_file(path: Path, kind: str = "a file") -> str:
    """The error message for a missing file, with the nearest names of existing ones.

    Args:
        path: of the file.
        kind: what was expected, should it be a folder.
    """
    if path.is_dir():
        return f"{path}: is a folder, not {kind}"
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file (nor is there a folder {folder})"
    try:
        found = (entry.name for entry in folder.iterdir() if entry.is_file())
        names = sorted(name for name in found if not name.startswith("."))
    except OSError:  # it cannot be listed
        names = []
    hint = f" {did_you_mean(path.name, names, 'Files there')}" if names else ""
    return f"{path}: no such file.{hint}"


def check_suffix(path: Path, suffixes: Sequence[str], what: str) -> None:
    """Check, before the work begins, that the name of a file fits what it will hold.

    Args:
        path: the file to write.
        suffixes: that its name may have.
        what: will be written, as a sentence for the message.

    Raises:
        ClebschError: it has another suffix.
    """
    if path.suffix not in suffixes:
        raise ClebschError(f"{path}: {what}; the name must end in {' or '.join(suffixes)}")


def check_output(
    path: Path | str, *, overwrite: bool = False, inputs: Iterable[Path | str] = ()
) -> Path:
    """Check, before the work begins, that a file can be written and would replace no other.

    Args:
        path: the file to write.
        overwrite: whether it may already exist.
        inputs: files that are read; the output may be none of them.

    Raises:
        ClebschError: says which, and what to do.
    """
    path = Path(path)
    if path.is_dir():
        raise ClebschError(f"{path}: is a folder, not the name of a file")
    if not path.parent.is_dir():
        raise ClebschError(f"{path}: there is no folder {path.parent}")
    if path.resolve() in {Path(one).resolve() for one in inputs}:
        raise ClebschError(f"{path} is read by this command: choose another name for the result")
    if path.exists() and not overwrite:
        raise ClebschError(
            f"{path} exists already: choose another name, or allow overwriting (--overwrite)"
        )
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ClebschError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def check_outputs(
    paths: Iterable[Path | str | None],
    *,
    overwrite: bool = False,
    inputs: Iterable[Path | str] = (),
) -> None:
    """``check_output`` of all that is going to be written, no two of which may be one file.

    Args:
        paths: None where nothing is.
        overwrite, inputs: as of ``check_output``.

    Raises:
        ClebschError: says which, and what to do.
    """
    inputs, seen = list(inputs), set()
    for path in paths:
        if path is None:
            continue
        place = check_output(path, overwrite=overwrite, inputs=inputs).resolve()
        if place in seen:
            raise ClebschError(f"{path}: is to hold two results: give each a name of its own")
        seen.add(place)


@contextmanager
def written_alone(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, against other processes and other parts of this one.

    A hidden file beside it carries the lock and is removed at the end. One that a killed process
    left does no harm: the lock is the system's, which releases it when a process ends.

    Raises:
        ClebschError: another holds it, or the file system cannot lock.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ClebschError(
            f"{path}: another process is writing it; wait for it or stop it, or choose another name"
        ) from None
    except OSError as error:
        raise ClebschError(f"{path}: cannot be locked: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # while the lock is held: it cannot be another process's
            os.unlink(lock.lock_file)
        lock.release()
