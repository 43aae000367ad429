"""The proof that comes with a run: its saved model is zero wherever its masks say, which is to the asked sparsity.

What a mask keeps may be zero too, where a network or a fixed strength made it so: `nonzero` counts the rest.

Of a low-rank run, which has no zeros: its saved factors are as few numbers as asked. Everything is counted in the
files, so that anybody can check a run that somebody else made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from argprune.tasks.runs import CERTIFICATE, MASKS, MODEL

# Of a method that solves a 0-1 program: the certificate of its last event.
SELECTION = "selection"
_WEIGHTS = "model.safetensors"
# By how much the size of factors may differ from the one asked for, as a share of the dense size.
_SHARE = 0.005
# What float64 may be off in a count that was asked for as a fraction, and in a tolerance that is computed likewise.
_ROUNDING = 1e-12


def certify(run: Path, sparsity: float, tolerance: float | None = None) -> dict[str, Any]:
    """The certificate of a run folder, from its saved model and masks.

    sparsity: the one asked for. tolerance: by how many entries the number kept may differ from the asked one; None:
    rounding in each matrix, half an entry. `holds` is True if no pruned entry is nonzero and the number of kept entries
    is the asked one within the tolerance. Raises ValueError where a mask has no weight in the saved model.
    """
    masks = load_file(run / MASKS)
    saved = load_file(run / MODEL / _WEIGHTS)
    missing = sorted(set(masks) - set(saved))
    if missing:
        raise ValueError(f"{run / MODEL / _WEIGHTS} has no weight {missing[0]!r}, which {MASKS} prunes.")
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    revived = sum(int((saved[name][~mask] != 0).sum()) for name, mask in masks.items())
    nonzero = sum(int(saved[name].count_nonzero()) for name in masks)
    wanted = total - sparsity * total
    tolerance = 0.5 * len(masks) if tolerance is None else tolerance
    return {
        "kind": "support",
        "total": total,
        "kept": kept,
        "wanted": wanted,
        "tolerance": tolerance,
        "nonzero": nonzero,
        "revived": revived,
        "holds": revived == 0 and abs(kept - wanted) <= tolerance + _ROUNDING * total,
        "sparsity": sparsity,
        "sha256": {name: sha256(run / name) for name in (MASKS, f"{MODEL}/{_WEIGHTS}")},
    }


def certify_size(
    run: Path, sparsity: float, dense: Mapping[str, int], tolerance: float | None = None
) -> dict[str, Any]:
    """The certificate of a low-rank run folder, from its saved model: how many numbers stand for each dense weight.

    dense: how many numbers each weight had. tolerance: by how many numbers the sum may differ from the asked one; half
    a percent of the dense one is always allowed, which None means. `holds` is True if it does not differ by more.
    Raises ValueError where a weight has neither factors nor a matrix in the saved model.
    """
    saved = load_file(run / MODEL / _WEIGHTS)
    stored = {name: stored_size(name, saved) for name in dense}
    total = sum(dense.values())
    kept, wanted = sum(stored.values()), total - sparsity * total
    tolerance = max(_SHARE * total, tolerance or 0.0)
    return {
        "kind": "size",
        "dense": dict(dense),
        "stored": stored,
        "total": total,
        "kept": kept,
        "wanted": wanted,
        "tolerance": tolerance,
        "holds": abs(kept - wanted) <= tolerance + _ROUNDING * total,
        "sparsity": sparsity,
        "sha256": {f"{MODEL}/{_WEIGHTS}": sha256(run / MODEL / _WEIGHTS)},
    }


def stored_size(name: str, state: Mapping[str, Tensor]) -> int:
    """How many numbers of a state dict stand for a weight: the matrix, or its two factors. ValueError for neither."""
    if name in state:
        return state[name].numel()
    layer = name.removesuffix(".weight")
    parts = [f"{layer}.first", f"{layer}.second"]
    missing = [part for part in parts if part not in state]
    if missing:
        raise ValueError(f"The model has neither {name!r} nor {missing[0]!r}; it is not that of this run.")
    return sum(state[part].numel() for part in parts)


def check_certificate(run: Path) -> bool:
    """Whether a run's certificate holds and is what its files give now."""
    stored = json.loads((run / CERTIFICATE).read_text(encoding="utf-8"))
    # Costs are not saved: what was proved of the selection was checked when it was made.
    stored.pop(SELECTION, None)
    if stored["kind"] == "size":
        again = certify_size(run, stored["sparsity"], stored["dense"], stored["tolerance"])
        return bool(stored["holds"]) and stored == again
    return bool(stored["holds"]) and stored == certify(run, stored["sparsity"], stored["tolerance"])


def sha256(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
