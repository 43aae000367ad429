"""The proof that comes with a run: its saved model is zero exactly where its masks say, to the asked sparsity.

Everything is counted in the files, so that anybody can check a run that somebody else made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from argprune.tasks.runs import CERTIFICATE, MASKS, MODEL

# Of a method that solves a 0-1 program: the certificate of its last event.
SELECTION = "selection"
_WEIGHTS = "model.safetensors"


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
        "holds": revived == 0 and abs(kept - wanted) <= tolerance,
        "sparsity": sparsity,
        "sha256": {name: _sha256(run / name) for name in (MASKS, f"{MODEL}/{_WEIGHTS}")},
    }


def check_certificate(run: Path) -> bool:
    """Whether a run's certificate holds and is what its files give now."""
    stored = json.loads((run / CERTIFICATE).read_text(encoding="utf-8"))
    # Costs are not saved: what was proved of the selection was checked when it was made.
    stored.pop(SELECTION, None)
    return bool(stored["holds"]) and stored == certify(run, stored["sparsity"], stored["tolerance"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
