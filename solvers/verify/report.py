"""What a verification says: one `Check` a property, one `Report` an operator."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One property of an operator, over all inputs that it was tried on.

    name: of the check. error: the worst found; tolerance: what was allowed there (the status compares the two input
    by input).
    where: the input of the worst error. tried: how many inputs. note: what the check rests on, or why it was skipped.
    failing: Python source of the smallest failing input found, to paste into a test.
    """

    name: str
    status: Status
    error: float = 0.0
    tolerance: float = 0.0
    where: str = ""
    tried: int = 0
    note: str = ""
    failing: str = ""


@dataclass(frozen=True)
class Speed:
    """Throughput of prox and prox_ on `entries` float32: bytes read and written once, against a copy's.

    gigabytes_per_second: of `prox_` where there is one, else of `prox`. ratio_to_copy: the copy's time is 1.
    extra_bytes_per_entry: the most memory that `prox` held at a time beyond its input, its result included.
    """

    entries: int
    gigabytes_per_second: float
    ratio_to_copy: float
    extra_bytes_per_entry: float


@dataclass(frozen=True)
class Report:
    """All checks of one operator.

    name: as it was asked for. operator: how it was built. facts: what it declares. seconds: of the checks. speed: where
    it was timed. slow: its prox is a numerical one.
    """

    name: str
    operator: str
    facts: dict[str, bool]
    checks: tuple[Check, ...]
    seconds: float
    speed: Speed | None = None
    slow: bool = field(default=False)

    @property
    def passed(self) -> bool:
        """True where no check failed and at least one passed."""
        return not self.failures and any(check.status == "passed" for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def worst(self) -> Check:
        """The check that came closest to its tolerance, or went farthest beyond."""
        return max(self.checks, key=lambda check: _severity(check))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; errors that are no finite numbers as strings."""
        data = asdict(self) | {"passed": self.passed}
        for check in data["checks"]:
            for key in ("error", "tolerance"):
                check[key] = check[key] if math.isfinite(check[key]) else str(check[key])
        return data


def _severity(check: Check) -> float:
    if check.status == "skipped":
        return -1.0
    if check.status == "failed":
        return math.inf
    return check.error / check.tolerance if check.tolerance else check.error
