"""Files that are written whole or not at all: what stood there before stays until the new one is complete."""

import contextlib
import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError, safe_open

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotWritten(OSError):
    """A file that could not be written; the text is one line that says why, and what to do."""


@contextlib.contextmanager
def replaced(path):
    """Gives the path (Path) to write to instead of `path`, whose file takes the place of that at `path` in the end.

    Where the block is left by an error or by Ctrl-C, the half-written file is removed and the old one stays. Raises
    NotWritten where the folder cannot be written to, or where the disk is full.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()  # until it is written, as what is written may be read from this folder
    except OSError as error:
        raise not_written(path, error) from error
    try:
        yield part
        part.replace(path)
    except NotWritten:  # of another file, written at the same time
        raise
    except OSError as error:
        if not is_full(error):  # what is written may fail to be read too
            raise
        raise not_written(path.parent, error) from error
    finally:
        part.unlink(missing_ok=True)


def not_written(path, error):
    """The NotWritten of an OSError. path: the file, or the folder where there may be several."""
    remedy = "make its folder writable"
    if error.errno in FULL or not error.errno:
        remedy = "free some space"
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return NotWritten(
        f"{path} cannot be written to ({reason}), and what was there is whole: {remedy}, or name another folder"
    )


def is_full(error):
    """Whether an exception, or one that led to it, says that a disk is full, over its quota or read-only."""
    numbers = (*FULL, errno.EROFS)
    reasons = [os.strerror(number) for number in numbers]
    reasons += ["PytorchStreamWriter failed writing", "unexpected pos"]  # torch gives no reason
    while error is not None:
        if "/dev/shm" in str(error):  # NCCL's memory, and no disk
            return False
        if getattr(error, "errno", None) in numbers or any(reason in str(error) for reason in reasons):
            return True
        error = error.__cause__ or error.__context__
    return False


def checksum(path):
    """The SHA-256 of a file, as a hexadecimal str."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(paths):
    """Those of several files (list[str]), read side by side."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(checksum, paths))


def broken_line(path):
    """The line of a safetensors file that is missing or cut short, None where it is whole: by its header and size."""
    try:
        with safe_open(path, framework="np"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{path} is no whole safetensors file ({one_line(error)}): copy or download it again"


def one_line(error):
    """The text of an exception on one line."""
    return " ".join(str(error).split())


def shown(value):
    """A value as it is written in Python, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
