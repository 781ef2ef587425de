"""Write files whole or not at all: the old file stays until the new one is complete."""

import contextlib
import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError, safe_open

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotWritten(OSError):
    """An error of one line: a file could not be written, why, and what to do."""


@contextlib.contextmanager
def replaced(path):
    """Yield a path (Path) beside `path` to write to. At the end of the block its file replaces the one at `path`.

    If an error or Ctrl-C ends the block, the half-written file is removed and the old one stays. Raises NotWritten if
    the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()  # the block may read this folder before it writes
    except OSError as error:
        raise not_written(path, error) from error
    try:
        yield part
        part.replace(path)
    except OSError as error:  # the block may also fail to read its input, or to write another file
        if isinstance(error, NotWritten) or not is_full(error):
            raise
        raise not_written(path.parent, error) from error
    finally:
        part.unlink(missing_ok=True)


def not_written(path, error):
    """Return the NotWritten for an OSError. path: the file, or its folder if there may be several."""
    remedy = "make its folder writable"
    if error.errno in FULL or not error.errno:
        remedy = "free some space"
    reason = os.strerror(error.errno) if error.errno else one_line(error)
    return NotWritten(
        f"{path} cannot be written to ({reason}), and what was there is whole: {remedy}, or name another folder"
    )


def is_full(error):
    """Return whether an exception or one of its causes says that a disk is full, over its quota or read-only."""
    numbers = (*FULL, errno.EROFS)
    reasons = [os.strerror(number) for number in numbers]
    reasons += ["PytorchStreamWriter failed writing", "unexpected pos"]  # torch gives no reason
    while error is not None:
        if "/dev/shm" in str(error):  # NCCL's shared memory is not a disk
            return False
        if getattr(error, "errno", None) in numbers or any(reason in str(error) for reason in reasons):
            return True
        error = error.__cause__ or error.__context__
    return False


def checksum(path):
    """Return the SHA-256 of a file as a hexadecimal str."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(paths):
    """Return the SHA-256 of each file (list[str]); four threads read them."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(checksum, paths))


def broken_line(path):
    """Return an error line if a safetensors file is missing or cut short, by its header and size, otherwise None."""
    try:
        with safe_open(path, framework="np"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{path} is no whole safetensors file ({one_line(error)}): copy or download it again"


def is_folder_name(name):
    """Return whether a name is a folder's and no hub id. The hub is not asked for one: offline it retries for long.

    The hub has nobody called `models`.
    """
    if name.startswith((".", "/", "~", "models/")) or name.count("/") > 1:
        return True
    return "/" in name and Path(name).parent.is_dir()


def one_line(error):
    """Return the text of an exception on one line."""
    return " ".join(str(error).split())


def shown(value):
    """Return a value as Python writes it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
