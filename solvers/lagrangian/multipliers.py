"""Dual ascent on one constraint of a size: a linear and a quadratic multiplier, and how hard they push.

    lack      = what the expected sparsity lacks of its target, > 0 where too much is open
    linear    <- linear + rate * lack                       (the derivative of linear * lack)
    quadratic <- quadratic + rate * lack^2                  (the derivative of quadratic * lack^2)
    pressure  = linear + (2 * quadratic + rho) * lack       (what the terms above and rho / 2 * lack^2 push gates with)

Seen as a controller, `linear` is the integral part and 2 quadratic + rho the proportional one, which damps: gates
answer late, and the integral alone swings around its target.

Reference: Wang, Wohlwend and Lei (2020), section 3.3, for the two multipliers; Sohrabi et al., "On PI Controllers for
Updating Lagrange Multipliers in Constrained Optimization" (2024), for the damping.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Multipliers:
    """The dual variables of one constraint, expected sparsity >= target (or =), and what they are measured in.

    linear, quadratic: lambda1 and lambda2. pressure: how hard gates are pushed shut; below 0, open.
    mean_square: running mean of the squares of df/dlog_alpha over the constraint's gates, whose root is the unit.
    """

    linear: float = 0.0
    quadratic: float = 0.0
    pressure: float = 0.0
    mean_square: float = 0.0

    def ascend(
        self, lack: float, rate: float, bound: float, *, rho: float = 0.0, equality: bool = False, restart: bool = False
    ) -> None:
        """A step of ascent; linear multiplier and pressure stay in [0, bound], of an equality in [-bound, bound].

        Gates take many steps to close, whatever the pressure; without a bound it would build up in the meantime and
        then shut all of them at once. Without the 0, gates that training shut by itself would be opened again.
        restart: an inequality that holds forgets its linear multiplier at once, instead of working it off.
        """
        least = -bound if equality else 0.0
        self.linear = min(max(self.linear + rate * lack, least), bound)
        if restart and not equality and lack < 0:
            self.linear = 0.0
        self.quadratic += rate * lack**2
        self.pressure = min(max(self.linear + (2 * self.quadratic + rho) * lack, least), bound)

    def observe(self, mean_square: float, memory: float = 0.9) -> None:
        """Follow the mean square of df/dlog_alpha over the constraint's gates."""
        self.mean_square = memory * self.mean_square + (1 - memory) * mean_square if self.mean_square else mean_square
