"""CoFi's gates: their gradients against autograd, their target, and what is left of each layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from argprune.solvers.groups import Columns, Part, Rows, Tied, Weight
from argprune.solvers.methods import CoFi

TOTAL, RATE = 60, 0.01


class Run:
    """Two residual feed-forward layers of 24 neurons, of which the second is of no use."""

    def __init__(self, method: CoFi, seed: int = 0, total: int = TOTAL) -> None:
        torch.manual_seed(seed)
        shapes = [(24, 10), (10, 24), (24, 10), (10, 24)]
        self.parameters = [nn.Parameter(torch.randn(shape) / 4) for shape in shapes]
        self.truth = [torch.randn(8, 10) / 2, torch.randn(10, 8) / 2]
        self.weights = [Weight(f"layers.{i // 2}.{i % 2}", p) for i, p in enumerate(self.parameters)]
        pairs = zip(self.weights[::2], self.weights[1::2], strict=True)
        self.ties = [Tied(f"layers.{i}", [Part(a, Rows()), Part(b, Columns())]) for i, (a, b) in enumerate(pairs)]
        self.method, self.total = method, total
        method.tie(self.ties)
        method.attach(self.weights, total)
        self.optimizer = method.wrap_optimizer(AdamW(self.parameters, lr=RATE))

    def loss(self, step: int, parameters: list[Tensor]) -> Tensor:
        x = torch.randn(32, 10, generator=torch.Generator().manual_seed(1000 + step))
        wanted = x + torch.relu(x @ self.truth[0].t()) @ self.truth[1].t()
        first, second, third, fourth = parameters
        hidden = x + torch.relu(x @ first.t()) @ second.t()
        return (hidden + 0.1 * torch.relu(hidden @ third.t()) @ fourth.t() - wanted).square().mean()

    def step(self, step: int) -> float:
        loss = self.loss(step, list(self.parameters))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = RATE * (1 - step / self.total)
        self.method.before_step(step)
        self.optimizer.step()
        self.method.after_step(step, RATE)
        return float(loss.detach())


@pytest.mark.parametrize("layers", [True, False])
def test_gates_feel_the_gradient_of_autograd(layers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method = CoFi(0.5, structure="neurons", layers=layers)
    run = Run(method)
    for step in range(12):
        run.step(step)
    dense = [p.detach().clone() for p in run.parameters]
    dense[1], dense[3] = (kept.clone() for kept in method._dense)
    leaves = [z.clone().requires_grad_() for z in method._sample]
    scales = [leaves[1] * leaves[0][0], leaves[2] * leaves[0][1]] if layers else leaves
    weights = [dense[0], dense[1] * scales[0], dense[2], dense[3] * scales[1]]
    run.loss(12, weights).backward()
    heard: list[list[Tensor]] = []
    monkeypatch.setattr(method._training, "learn", lambda of_loss, share: heard.append(of_loss))
    run.step(12)
    [of_loss] = heard
    for got, leaf in zip(of_loss, leaves, strict=True):
        assert leaf.grad is not None
        wanted = leaf.grad * method._gates.slope(leaf.detach())
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_the_target_is_expected_and_met_on_every_seed(sparsity: float) -> None:
    for seed in range(2):
        method = CoFi(sparsity, structure="neurons")
        run = Run(method, seed, total=160)
        for step in range(160):
            run.step(step)
        masks = method.finish()
        report = method.report()
        assert report["expected_sparsity"] == pytest.approx(sparsity, abs=0.005)
        total = sum(mask.numel() for mask in masks.values())
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert abs(kept - (1 - sparsity) * total) <= method.tolerance
        for tie in run.ties:
            left = int((tie.norms() > 0).sum())
            assert left == dict(report["units"])[tie.name]


def test_the_layer_of_no_use_goes_first() -> None:
    method = CoFi(0.5, structure="neurons")
    run = Run(method, total=200)
    losses = [run.step(step) for step in range(200)]
    method.finish()
    (_, first), (_, second) = method.report()["units"]
    assert first > 2 * second
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity 1.0"),
        ({"structure": "rows"}, "structure 'rows'"),
        ({"droprate_init": 1.0}, "droprate 1.0"),
        ({"kind": "about"}, "kind 'about'"),
        ({"clamp": 0.0}, "clamp 0.0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoFi(**{"sparsity": 0.5, **options})
