"""The C++ kernels of the sparse layers, compiled on first use and kept on disk.

They are one file without dependencies, kernels.cpp, built as a shared library by the C++ compiler of the machine (the
environment variable CXX, else c++, g++ or clang++) into ~/.cache/argprune, or where XDG_CACHE_HOME says. The name of
the library is a hash of the source, the compiler and the flags, so that a kernel is never older than its source.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_suffix(".cpp")
_VECTORS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx2", "-mfma")}
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC")
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    "multiply_strips": (_POINTER, _SIZE, _SIZE, *5 * (_POINTER,), _SIZE, _SIZE, ctypes.c_int),
    "multiply_rows": (_POINTER, _SIZE, _SIZE, *5 * (_POINTER,), _SIZE, _POINTER, ctypes.c_int),
}


class NoCompiler(RuntimeError):
    """No kernel can be built on this machine; the message is one line that says why."""


@functools.cache
def kernels() -> ctypes.CDLL:
    """The library with `multiply_strips` and `multiply_rows`. Raises NoCompiler."""
    # macOS has no OpenMP beside its compiler: there one thread has to do.
    openmp = () if sys.platform == "darwin" else ("-fopenmp",)
    flags = (*_FLAGS, *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()), *openmp)
    compiler = _compiler()
    version = _run([compiler, "--version"])
    key = hashlib.sha256("\0".join([_SOURCE.read_text(encoding="utf-8"), version, *flags]).encode()).hexdigest()
    library = _folder() / f"kernels-{key[:16]}.so"
    if not library.exists():
        _build([compiler, *flags, str(_SOURCE)], library)
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise NoCompiler(f"{library} cannot be loaded: {error}") from error
    for name, types in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, None
    return loaded


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise NoCompiler(f"no C++ compiler {named!r} (CXX)" if named else "no C++ compiler (c++, g++, clang++)")


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "argprune"


def _build(command: list[str], library: Path) -> None:
    """Compile beside the place and move there: several processes may do so at once."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            _run([*command, "-o", str(made)])
            os.replace(made, library)
    except OSError as error:
        raise NoCompiler(f"{library.parent}: {error.strerror}") from error


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise NoCompiler(f"{command[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), f"exit status {error.returncode}")
        raise NoCompiler(f"{command[0]}: {said}") from error
