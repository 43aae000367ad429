"""Criteria against exact solvers and against the true loss, on a block small enough to know every mask of.

    regret(mask) = L(mask) - L(best mask)
                 = [L(mask) - L(m)]      solver gap: the score against the exact optimum m of the surrogate it declares
                 + [L(m) - L(m')]        sampling error: m' is that optimum with the gradient of the held-out examples
                 + [L(m') - L(best)]     model error: the surrogate is not the loss.

The last two together are the surrogate error. Each may be negative; they add up to the regret.
Sources: dossier paper-pins-sparsebert, sections 1.10, 4 and 7.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from argprune.solvers.criteria import Criterion, Evidence
from argprune.solvers.ilp import keep_largest
from argprune.solvers.verify.landscape import Known, Landscape, Loss, Proof, explore
from argprune.solvers.verify.surrogates import ENUMERABLE, KINDS, Kind, Optimum, Surrogates, rank_correlation

# Random masks that stand for all where there are too many.
_SAMPLE = 64
# Of what random masks lose, a surrogate's regret that is rounding: scores are float32.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a weight, and what is known of it.

    name: for reports. weight: (rows, n); unit i is column i. evidence: what the criteria are shown, batch by batch, of
    the calibration examples. surrogates: from the same examples. heldout: (n,), the surrogates' gradient on the
    examples that `loss` is the mean over. loss: masks (m, n), of any numbers kept -> (m,) float64, their loss less
    that of the whole block, base.
    """

    name: str
    weight: Tensor
    evidence: Sequence[Evidence]
    surrogates: Surrogates
    heldout: Tensor
    loss: Loss
    base: float = 0.0


@dataclass(frozen=True)
class Price:
    """What a mask costs in one model of the loss: its value, its regret, and the regret as a share of random masks'.

    share: 0 is optimal, 1 what the mean over all masks loses; None where all masks cost the same.
    """

    objective: float
    regret: float
    share: float | None


@dataclass(frozen=True)
class Split:
    """The true regret of a criterion's mask, in parts that add up to it: see the module."""

    solver_gap: float
    sampling_error: float
    model_error: float

    @property
    def surrogate_error(self) -> float:
        """Sampling and model error: the true regret of the surrogate's exact optimum."""
        return self.sampling_error + self.model_error


@dataclass(frozen=True)
class Judged:
    """A mask on a block: what each surrogate and the true loss say of it.

    kept: the columns kept. surrogate: the one that the criterion declares, "none", or that a reference is the optimum
    of. prices: by surrogate. truth: the loss. ratio: its objective as a multiple of the best mask's, None where that
    is not positive. split: None without a surrogate. certified: the mask is its own surrogate's optimum, up to
    rounding. correlation: Spearman's, of the scores with the true losses of removing single units; None for references.
    """

    name: str
    surrogate: str
    kept: tuple[int, ...]
    prices: Mapping[str, Price]
    truth: Price
    ratio: float | None
    split: Split | None = None
    certified: bool = False
    correlation: float | None = None


@dataclass(frozen=True)
class SurrogateReport:
    """A surrogate on a block: its optimum, what is proved of it, and how its values rank masks as the loss does.

    random: its mean over masks. correlation: Spearman's over all masks; heldout_correlation: with the held-out
    gradient.
    """

    objective: float
    bound: float
    status: str
    random: float
    correlation: float | None
    heldout_correlation: float | None


@dataclass(frozen=True)
class BlockReport:
    """Everything measured on one block.

    base: the held-out loss of the whole block, to which objectives are added. proof, error, degree, evaluations: of the
    best mask, as in `Landscape`. bound: below every mask's objective; losses are at least 0. random, spread: mean and
    standard deviation of the objective over all `masks`, or over 64 random ones where there are too many. references:
    the surrogates' optima, the same with the held-out gradient, and the best mask.
    """

    name: str
    units: int
    keep: int
    rows: int
    base: float
    masks: int
    proof: Proof
    error: float
    degree: int
    evaluations: int
    best: float
    bound: float
    random: float
    spread: float
    surrogates: Mapping[str, SurrogateReport]
    references: tuple[Judged, ...]
    criteria: tuple[Judged, ...]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        data = asdict(self)
        for judged in (*data["references"], *data["criteria"]):
            split = judged["split"]
            if split is not None:
                split["surrogate_error"] = split["sampling_error"] + split["model_error"]
        return data


def scores_of(criterion: Criterion, weight: Tensor, evidence: Iterable[Evidence]) -> Tensor:
    """A criterion's scores of a weight (rows, columns) after batches of evidence, float64 on the CPU."""
    accumulators = criterion.start(weight)
    for batch in evidence:
        criterion.update(accumulators, batch)
    scores = criterion.scores(accumulators, weight)
    if scores.shape != weight.shape:
        raise ValueError(
            f"{type(criterion).__name__}: scores of shape {tuple(scores.shape)} for a weight of {tuple(weight.shape)}; "
            "give one score an entry."
        )
    return scores.detach().cpu().double()


def check_criteria(
    block: Block, criteria: Mapping[str, Criterion], *, direct: bool = False, seed: int = 0, time_limit: float = 60.0
) -> BlockReport:
    """Judge criteria on a block: their masks against the optima of all surrogates and of the true loss.

    criteria: by the name to report. A unit's score is the sum of its entries'. direct, seed: of `explore`. time_limit:
    seconds for each surrogate's optimum where there are too many masks to enumerate.
    """
    began = time.perf_counter()
    surrogates, loss = block.surrogates, Known(block.loss)
    n, keep = surrogates.n, surrogates.keep
    scores = {name: scores_of(criterion, block.weight, block.evidence).sum(0) for name, criterion in criteria.items()}
    masks = {name: keep_largest([score], keep)[0] for name, score in scores.items()}
    optima = {kind: surrogates.optimum(kind, time_limit) for kind in KINDS}
    informed = surrogates.with_gradient(block.heldout)
    heldout = {kind: informed.optimum(kind, time_limit).mask for kind in KINDS}
    sample = _random_masks(n, keep, seed) if n > ENUMERABLE else torch.zeros(0, n, dtype=torch.bool)
    candidates = [*masks.values(), *(optimum.mask for optimum in optima.values()), *heldout.values(), *sample]
    landscape = explore(loss, n, keep, torch.stack(candidates), direct=direct, seed=seed)
    everything = (landscape.masks, landscape.values) if landscape.complete else (sample, loss(sample))
    priced = {kind: surrogates.values(kind, everything[0]) for kind in KINDS}
    judge = _Judge(surrogates, optima, heldout, loss, landscape, *everything, priced)
    singles = loss(~torch.eye(n, dtype=torch.bool))
    judged = []
    for name, criterion in criteria.items():
        correlation = rank_correlation(scores[name], singles)
        judged.append(judge.criterion(name, criterion.surrogate, masks[name], correlation))
    references = [judge.reference(f"{kind} optimum", kind, optimum.mask) for kind, optimum in optima.items()]
    references += [judge.reference(f"{kind} optimum (held-out)", kind, mask) for kind, mask in heldout.items()]
    references.append(judge.reference("best mask", "none", landscape.masks[landscape.best]))
    return BlockReport(
        name=block.name,
        units=n,
        keep=keep,
        rows=len(block.weight),
        base=block.base,
        masks=len(landscape.masks),
        proof=landscape.proof,
        error=landscape.error,
        degree=landscape.degree,
        evaluations=loss.evaluations,
        best=judge.best,
        bound=judge.best if landscape.complete else -block.base,
        random=judge.random,
        spread=float(judge.values.std(correction=0)),
        surrogates={kind: judge.surrogate(kind, informed) for kind in KINDS},
        references=tuple(references),
        criteria=tuple(judged),
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True, eq=False)
class _Judge:
    """Prices masks; masks, with their losses and what surrogates say, are all there are, or a random sample."""

    surrogates: Surrogates
    optima: Mapping[Kind, Optimum]
    heldout: Mapping[Kind, Tensor]
    loss: Known
    landscape: Landscape
    masks: Tensor
    values: Tensor
    priced: Mapping[Kind, Tensor]

    @property
    def best(self) -> float:
        return float(self.landscape.values[self.landscape.best])

    @property
    def random(self) -> float:
        return float(self.values.mean())

    def reference(self, name: str, surrogate: str, mask: Tensor) -> Judged:
        """What a mask (units,) costs in truth and in every surrogate; no split, since nothing chose it."""
        objective = self._true(mask)
        return Judged(
            name=name,
            surrogate=surrogate,
            kept=tuple(mask.nonzero().flatten().tolist()),
            prices={kind: self._price(kind, mask) for kind in KINDS},
            truth=_price(objective, self.best, self.random),
            ratio=objective / self.best if self.best > 0 else None,
        )

    def criterion(self, name: str, surrogate: str, mask: Tensor, correlation: float | None) -> Judged:
        """The same of a criterion's mask, its true regret split by the surrogate that it declares."""
        judged = self.reference(name, surrogate, mask)
        split, certified = None, False
        if surrogate != "none":
            kind: Kind = surrogate  # type: ignore[assignment]
            own, informed = self._true(self.optima[kind].mask), self._true(self.heldout[kind])
            split = Split(judged.truth.objective - own, own - informed, informed - self.best)
            certified = (judged.prices[kind].share or 0.0) <= _ROUNDING and self.optima[kind].status == "optimal"
        return Judged(
            name=name,
            surrogate=surrogate,
            kept=judged.kept,
            prices=judged.prices,
            truth=judged.truth,
            ratio=judged.ratio,
            split=split,
            certified=certified,
            correlation=correlation,
        )

    def surrogate(self, kind: Kind, informed: Surrogates) -> SurrogateReport:
        """A surrogate's optimum, and how its values rank all masks beside the true loss."""
        optimum, values = self.optima[kind], self.priced[kind]
        return SurrogateReport(
            objective=optimum.objective,
            bound=optimum.bound,
            status=optimum.status,
            random=float(values.mean()),
            correlation=rank_correlation(values, self.values),
            heldout_correlation=rank_correlation(informed.values(kind, self.masks), self.values),
        )

    def _true(self, mask: Tensor) -> float:
        return float(self.loss(mask[None])[0])

    def _price(self, kind: Kind, mask: Tensor) -> Price:
        objective = float(self.surrogates.values(kind, mask[None])[0])
        return _price(objective, self.optima[kind].objective, float(self.priced[kind].mean()))


def _price(objective: float, best: float, random: float) -> Price:
    # Two evaluations of one mask may differ by their rounding.
    regret = max(0.0, objective - best)
    return Price(objective, regret, regret / (random - best) if random > best else None)


def _random_masks(n: int, keep: int, seed: int) -> Tensor:
    """(64, n) masks with `keep` ones."""
    order = torch.rand(_SAMPLE, n, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return torch.zeros(_SAMPLE, n, dtype=torch.bool).scatter_(1, order[:, :keep], True)
