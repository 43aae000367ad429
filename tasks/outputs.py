"""Where the commands write: what cannot be written to is refused before the work."""

from __future__ import annotations

import os
from pathlib import Path


def make_folder(folder: Path, output: Path) -> None:
    """Make a folder and its parents where they are missing; a link is followed.

    output: what the user gave, for the message. Raises ValueError where it cannot be made or written to.
    """
    real = Path(os.path.realpath(folder))
    try:
        real.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Output {output}: {error.strerror}; give a folder that can be made.") from error
    if not os.access(real, os.W_OK | os.X_OK):
        raise ValueError(f"Output {output} cannot be written to; give a folder that can.")


def check_target(option: str, file: str) -> None:
    """Raise ValueError, one line, unless the file that an option gives can be written, as far as can be told."""
    folder = Path(os.path.realpath(file)).parent
    if Path(file).is_dir():
        raise ValueError(f"--{option} {file}: that is a folder; give a file.")
    if not folder.is_dir():
        raise ValueError(f"--{option} {file}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--{option} {file}: {folder} cannot be written to; give another folder.")
