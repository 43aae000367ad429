"""`argprune verify criteria`: gradients, curvature and losses against autograd and plain loops; the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from argprune.cli import main
from argprune.models import find_weights, load_model, load_tokenizer
from argprune.solvers.registry import registered
from argprune.solvers.verify.surrogates import all_masks
from argprune.tasks import criteria_command
from argprune.tasks.criteria_blocks import (
    Place,
    adam_steps,
    draw_places,
    hessian_of,
    look,
    make_block,
    matrix_losses,
    matrix_of,
    true_losses,
)
from argprune.tasks.criteria_command import choose_weights, named_criteria
from argprune.tasks.criteria_suffix import Batch, Suffix, make_batches
from argprune.tasks.data import load_task
from argprune.tasks.encoded import Encoded

LAYERS = (
    "bert.encoder.layer.0.attention.self.query",
    "bert.encoder.layer.0.output.dense",
    "bert.encoder.layer.1.attention.output.dense",
    "bert.encoder.layer.1.intermediate.dense",
)


@pytest.fixture(scope="module")
def model(tiny_model: str) -> PreTrainedModel:
    """In float64, so that differences are exact to many digits, and with weights that matter."""
    torch.manual_seed(1)
    loaded: PreTrainedModel = load_model(tiny_model, num_labels=2).double().requires_grad_(False)
    with torch.no_grad():
        for weight in find_weights(loaded):
            weight.parameter.mul_(8)
        loaded.get_parameter("classifier.weight").mul_(30)
    return loaded


@pytest.fixture(scope="module")
def batches(tiny_model: str, tiny_data: str) -> list[Batch]:
    tokenizer = load_tokenizer(tiny_model)
    data = Encoded(load_task("words", tiny_data).splits["validation"], tokenizer, 8)
    return make_batches(data, tokenizer, range(20))


def loss_of(model: PreTrainedModel, batches: list[Batch], changed: dict[str, Tensor]) -> Tensor:
    """(examples,): every example's loss with other parameters, the plain way."""
    losses = []
    for batch in batches:
        logits = functional_call(model, changed, kwargs=dict(batch.inputs)).logits
        losses.append(nn.functional.cross_entropy(logits, batch.labels, reduction="none"))
    return torch.cat(losses)


def place_in(model: PreTrainedModel, layer: str, rows: int = 1, size: int = 6) -> Place:
    [weight] = find_weights(model, [f"{layer}.weight"])
    return draw_places(weight, size, rows, 1, seed=3)[0]


def scaled(place: Place, scales: Tensor) -> Tensor:
    """The weight matrix with a block's units scaled."""
    matrix = place.matrix.clone()
    factors = torch.ones_like(matrix).index_put((place.rows[:, None], place.columns), scales)
    return matrix * factors


@pytest.mark.parametrize(("layer", "rows"), [*zip(LAYERS, (3, 1, 1, 3), strict=True)])
def test_true_losses_are_those_of_a_loop_over_weights(
    model: PreTrainedModel, batches: list[Batch], layer: str, rows: int
) -> None:
    place, module = place_in(model, layer, rows), model.get_submodule(layer)
    masks = torch.cat([all_masks(6, 3), torch.ones(1, 6, dtype=torch.bool)])
    found = true_losses(place, [Suffix(model, module, batch) for batch in batches], masks)
    with torch.no_grad():
        before = loss_of(model, batches, {}).mean()
        for mask, value in zip(masks, found, strict=True):
            after = loss_of(model, batches, {f"{layer}.weight": scaled(place, mask.double())}).mean()
            assert float(value) == pytest.approx(float(after - before), abs=1e-12)
    assert float(found[:-1].abs().min()) > 1e-9
    assert float(found[-1]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("layer", "rows"), [*zip(LAYERS, (3, 1, 1, 3), strict=True)])
def test_gradients_and_curvature_are_autograds(
    model: PreTrainedModel, batches: list[Batch], layer: str, rows: int
) -> None:
    place, module = place_in(model, layer, rows), model.get_submodule(layer)
    # Its double backward is not there for the fused attention.
    model.set_attn_implementation("eager")

    def of_scales(scales: Tensor) -> Tensor:
        return loss_of(model, batches, {f"{layer}.weight": scaled(place, scales)})

    ones = torch.ones(6, dtype=torch.float64)
    single = torch.autograd.functional.jacobian(of_scales, ones)
    hessian = torch.autograd.functional.hessian(lambda scales: of_scales(scales).mean(), ones)
    model.set_attn_implementation("sdpa")
    assert float(single.abs().max()) > 1e-6
    [seen] = look(model, [module], batches)
    suffixes = [Suffix(model, module, batch) for batch in batches]
    units = torch.cat([batch.units(place) for batch in seen])
    assert torch.allclose(units, single, rtol=1e-9, atol=1e-12)
    options: dict[str, Any] = {"keep": 3, "learning_rate": 1e-3, "weight_decay": 0.01}
    block = make_block("b", place, seen, seen, suffixes, suffixes, curvature="fisher", **options)
    fisher = single.t() @ single / len(single)
    assert torch.allclose(block.surrogates.curvature, fisher, rtol=1e-9, atol=1e-15)
    assert torch.allclose(block.surrogates.refit, fisher + 0.01 * fisher.diagonal().diag(), rtol=1e-9, atol=1e-15)
    assert torch.allclose(block.surrogates.gradient, single.mean(0), rtol=1e-9, atol=1e-12)
    assert torch.equal(block.heldout, block.surrogates.gradient)
    # Differences over an eighth of the weight leave the fourth derivative.
    found = hessian_of(place, suffixes)
    assert torch.allclose(found, hessian, rtol=0, atol=0.05 * float(hessian.abs().max()) + 1e-12)
    block = make_block("b", place, seen, seen, suffixes, suffixes, curvature="hessian", **options)
    assert torch.equal(block.surrogates.curvature, found)
    # What criteria see adds up to the same gradient.
    sizes = torch.tensor([batch.examples for batch in block.evidence], dtype=torch.float64)
    gradients = torch.stack([batch.gradient for batch in block.evidence if batch.gradient is not None])
    mean = (gradients * sizes[:, None, None]).sum(0) / sizes.sum()
    assert torch.allclose((mean * block.weight).sum(0), single.mean(0), rtol=1e-9, atol=1e-12)
    assert sum(len(batch.inputs) for batch in block.evidence if batch.inputs is not None) == sum(
        int(batch.tokens.sum()) for batch in batches
    )


def test_the_inputs_curvature_is_kronecker_factored(model: PreTrainedModel, batches: list[Batch]) -> None:
    layer = LAYERS[2]
    place, module = place_in(model, layer, 2, 4), model.get_submodule(layer)
    [seen] = look(model, [module], batches)
    options: dict[str, Any] = {"keep": 2, "learning_rate": 1e-3, "weight_decay": 0.01}
    block = make_block("b", place, seen, seen, [], [Suffix(model, module, batches[0])], curvature="inputs", **options)
    inputs = torch.cat([batch.inputs[batch.batch.tokens] for batch in seen])[:, place.columns]
    moments = inputs.t() @ inputs / len(inputs)
    squares = sum(batch.gradients[..., place.rows].square().sum((0, 1)) for batch in seen) / 20
    expected = torch.einsum("r,ri,rj,ij->ij", squares, place.weight, place.weight, moments)
    assert torch.allclose(block.surrogates.curvature, expected, rtol=1e-9)
    assert torch.allclose(block.surrogates.refit, expected + 0.01 * expected.diagonal().diag(), rtol=1e-9)


def test_steps_are_adams_from_the_weight_that_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    found = adam_steps(weight, gradients, learning_rate=1e-2, weight_decay=0.1)
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate([*gradients, *gradients], 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        if step > 3:
            assert torch.allclose(found[step - 4], weight * (1 - 1e-3) - 1e-2 * move)


def test_whole_weights_lose_what_a_loop_says(model: PreTrainedModel, batches: list[Batch]) -> None:
    layer = LAYERS[2]
    matrix = model.get_parameter(f"{layer}.weight")
    masks = torch.rand(3, *matrix.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found = matrix_losses(model, model.get_submodule(layer), matrix, batches, masks)
    with torch.no_grad():
        before = loss_of(model, batches, {}).mean()
        for mask, value in zip(masks, found, strict=True):
            after = loss_of(model, batches, {f"{layer}.weight": matrix * mask}).mean()
            assert float(value) == pytest.approx(float(after - before), abs=1e-12)


def test_weights_stored_as_inputs_by_outputs_are_seen_by_rows(batches: list[Batch]) -> None:
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    gpt = GPT2ForSequenceClassification(config).eval().double().requires_grad_(False)
    [weight] = find_weights(gpt, ["*.0.mlp.c_fc.weight"])
    assert weight.transposed
    layer = weight.name.removesuffix(".weight")
    # The tokenizer is BERT's: GPT-2 takes what it knows of.
    kept = [Batch({k: v for k, v in b.inputs.items() if k != "token_type_ids"}, b.labels) for b in batches]
    [place] = draw_places(weight, 4, 2, 1, seed=0)
    masks = all_masks(4, 2)
    found = true_losses(place, [Suffix(gpt, gpt.get_submodule(layer), batch) for batch in kept], masks)
    before = loss_of(gpt, kept, {}).mean()
    for mask, value in zip(masks, found, strict=True):
        after = loss_of(gpt, kept, {weight.name: scaled(place, mask.double()).t()}).mean()
        assert float(value) == pytest.approx(float(after - before), abs=1e-12)
    assert float(found.abs().max()) > 1e-9


def test_a_layer_that_runs_twice_is_refused(batches: list[Batch]) -> None:
    config = AlbertConfig(
        vocab_size=64,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    albert = AlbertForSequenceClassification(config).eval()
    [weight] = find_weights(albert, ["*.ffn.weight"])
    with pytest.raises(ValueError, match="runs a layer 2 times a forward pass"):
        Suffix(albert, albert.get_submodule(weight.name.removesuffix(".weight")), batches[0])


def test_blocks_are_drawn_by_seed_within_the_weight(model: PreTrainedModel) -> None:
    [weight] = find_weights(model, ["*.1.output.dense.weight"])
    first, second = (draw_places(weight, 5, 2, 3, seed=1) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.columns, two.columns)
        assert torch.equal(one.rows, two.rows)
        assert len(set(one.columns.tolist())) == 5
        assert torch.equal(one.weight, matrix_of(weight)[one.rows][:, one.columns])
    assert len({tuple(place.columns.tolist()) for place in first}) == 3
    with pytest.raises(ValueError, match=r"size 65, but bert\.\S+ has 64 columns; give at most that"):
        draw_places(weight, 65, 1, 1, seed=0)
    with pytest.raises(ValueError, match=r"rows 33, but bert\.\S+ has 32 rows; give at most that"):
        draw_places(weight, 4, 33, 1, seed=0)


def test_layers_by_default_are_spread_over_the_depth(model: PreTrainedModel) -> None:
    assert [weight.name for weight in choose_weights(model, ())] == [
        f"bert.encoder.layer.{layer}.attention.output.dense.weight" for layer in (0, 1)
    ]


def test_every_registered_variant_is_checked() -> None:
    named = named_criteria(())
    assert len(named) == sum(len(entry.examples) for entry in registered("criteria").values())
    assert {"pins", "pins sign=signed", "pins sign=abs", "second_order", "taylor sign=abs"} <= set(named)
    with pytest.raises(ValueError, match="'taylor' is given twice"):
        named_criteria([{"name": "taylor"}, {"name": "taylor"}])


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_model: str, tiny_data: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command on the tiny model and task, small."""

    def call(*arguments: object) -> tuple[int, str, str]:
        given = ["--model", tiny_model, "--task", "words", "--data-dir", tiny_data, "--size", "6", "--examples", "12"]
        given += ["--calibration", "32", "--max-length", "8", "--blocks", "2"]
        status = main(["verify", "criteria", *given, *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


USER = '''
from dataclasses import dataclass

from argprune.solvers.criteria import Elementwise


@dataclass(frozen=True)
class Cubed(Elementwise):
    """|w| to a power."""

    power: float = 3.0
    surrogate = "diagonal"
    formula = "|w|^power"

    def raw(self, evidence):
        return evidence.weight.abs() ** self.power
'''


def test_the_report_holds_every_number(run: Run, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "svg")}
    status, out, err = run(
        "--pretrained", "--json", files["json"], "--csv", files["csv"], "--plot", files["svg"], "--keep", 2
    )
    assert status == 0
    assert "[4/4]" in err
    for heading in ("TRUE LOSS", "sampling", "second_order", "Least true regret", "best mask", "Surrogate error"):
        assert heading in out
    data = json.loads(files["json"].read_text())
    names = set(named_criteria(()))
    assert {summary["name"] for summary in data["criteria"]} == names
    assert data["keep"] == 2
    assert len(data["layers"]) == 2
    assert data["reading"]
    for layer in data["layers"]:
        assert set(layer["matrix"]) == names
        assert len(layer["blocks"]) == 2
        for block in layer["blocks"]:
            assert block["masks"] == 15
            assert block["proof"] == "exhaustive"
            assert {judged["name"] for judged in block["criteria"]} == names
            for judged in block["criteria"]:
                assert len(judged["kept"]) == 2
                parts = judged["split"] or {"solver_gap": judged["truth"]["regret"], "surrogate_error": 0.0}
                assert parts["solver_gap"] + parts["surrogate_error"] == pytest.approx(judged["truth"]["regret"])
            linear = next(judged for judged in block["criteria"] if judged["name"] == "taylor")
            assert linear["certified"] is True
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert len(rows) == 2 * (2 * (len(names) + 9) + len(names))
    assert {row["kind"] for row in rows} == {"criterion", "reference", "matrix"}
    assert "<svg" in files["svg"].read_text()


def test_own_criteria_quiet_and_without_whole_weights(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER, encoding="utf-8")
    file = tmp_path / "report.json"
    arguments = ["--pretrained", "--criterion", f"{tmp_path}/mine.py:Cubed", "--criterion.power", "2", "--json", file]
    arguments += ["--criterion", "magnitude", "--no-matrix", "-q", "--layer", "*.0.intermediate.*", "--rows", 2]
    assert run(*arguments, "--exhaustive", "--curvature", "inputs") == (0, "", "")
    data = json.loads(file.read_text())
    assert [layer["name"] for layer in data["layers"]] == ["bert.encoder.layer.0.intermediate.dense.weight"]
    assert data["layers"][0]["matrix"] == {}
    assert data["rows"] == 2
    assert {summary["name"].rpartition(":")[2] for summary in data["criteria"]} == {"Cubed power=2", "magnitude"}


def test_more_than_twenty_units_are_against_the_best_known(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    status, out, _ = run(
        "--pretrained",
        "--size",
        22,
        "--keep",
        20,
        "--blocks",
        1,
        "--json",
        file,
        "--criterion",
        "taylor",
        "--no-matrix",
    )
    assert status == 0
    assert "against the best known" in out
    for layer in json.loads(file.read_text())["layers"]:
        [block] = layer["blocks"]
        assert block["proof"] == "best known"
        assert block["bound"] == -block["base"]
        assert block["criteria"][0]["truth"]["regret"] >= 0


def test_a_model_without_a_head_is_fine_tuned_first(run: Run, tmp_path: Path) -> None:
    arguments = ["--dense", tmp_path / "dense", "--criterion", "magnitude", "--no-matrix", "--blocks", 1]
    status, _, err = run(*arguments)
    assert status == 0
    assert "has no trained head: fine-tuning on words" in err
    assert (tmp_path / "dense" / "metrics.json").is_file()
    before = (tmp_path / "dense" / "metrics.json").stat().st_mtime_ns
    assert run(*arguments)[0] == 0
    assert (tmp_path / "dense" / "metrics.json").stat().st_mtime_ns == before
    status, _, err = run("--model", tmp_path / "dense" / "model", "--criterion", "magnitude", "--no-matrix")
    assert status == 0
    assert "fine-tuning" not in err


def test_a_finished_dense_run_is_taken_as_it_is(run: Run, dense: Path) -> None:
    """Whatever its settings: these are of twenty steps."""
    before = (dense / "metrics.json").stat().st_mtime_ns
    status, _, err = run("--dense", dense, "--criterion", "magnitude", "--no-matrix", "--blocks", 1)
    assert status == 0, err
    assert f"taking that of the run {dense}" in err
    assert "fine-tuning" not in err
    assert (dense / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("key", "value"), [("method", "rpp"), ("model", "roberta-base"), ("task", "other")])
def test_a_run_of_something_else_is_refused(run: Run, dense: Path, tmp_path: Path, key: str, value: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    metrics = json.loads((dense / "metrics.json").read_text())
    wanted = metrics[key]
    (other / "metrics.json").write_text(json.dumps({**metrics, key: value}))
    status, _, err = run("--dense", other)
    assert status == 2
    assert f"{other} is a run of {key} {value!r}, not {wanted!r}; give --dense another folder." in err
    assert err.count("\n") == 1


def test_the_same_folder_by_another_name_is_the_same_model(
    run: Run, dense: Path, tiny_model: str, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_model)
    arguments = ["--dense", dense, "--criterion", "magnitude", "--no-matrix", "--blocks", 1, "-q"]
    assert run("--model", link, *arguments) == (0, "", "")


@pytest.mark.parametrize("option", ["json", "csv", "plot"])
def test_files_that_cannot_be_written_are_refused_before_the_work(
    run: Run, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria_command, "run_check", None)
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "file").touch()
    for name, message in {
        "folder.svg": "that is a folder; give a file.",
        "file/x.svg": f"there is no folder {tmp_path / 'file'}.",
    }.items():
        status, _, err = run("--pretrained", f"--{option}", tmp_path / name)
        assert status == 2
        assert f"--{option} {tmp_path / name}: {message}" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "*.attenion.*"], "No weight matches '*.attenion.*'"),
        (["--size", "100"], "size 100, but bert.encoder.layer.0.attention.output.dense.weight has 32 columns"),
        (["--rows", "33"], "rows 33, but"),
        (["--keep", "6"], "keep 6 of 6 units; need 0 < keep < size."),
        (["--keep", "0"], "keep 0 of 6 units"),
        (["--size", "21", "--exhaustive"], "size 21 has too many masks to evaluate each; give at most 20"),
        (["--examples", "41"], "examples 41, but the validation split has 40 rows; give at most that."),
        (["--calibration", "176"], "calibration 176, but the training split has 160 rows"),
        (["--calibration", "24"], "calibration 24; give a multiple of the batch size, 16"),
        (["--blocks", "0"], "blocks 0; give at least 1."),
        (["--learning-rate", "-1"], "learning_rate -1.0; it must be finite and > 0."),
        (["--curvature", "flat"], "invalid choice: 'flat'"),
        (["--criterion", "magnitud"], "Did you mean 'magnitude'?"),
        (["--criterion.sign", "abs"], "--criterion.sign before --criterion NAME"),
        (["--criterion", "taylor", "--criterion.sign", "x"], "sign 'x'; choose one of signed, abs."),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
        (["--plot", "x.jpeg"], "give a file that ends in .svg, .png, .pdf."),
        (["--task", "word"], "Did you mean 'words'?"),
        (["--dense", "run"], "--pretrained and --dense"),
    ],
)
def test_bad_usage_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    status, out, err = run("--pretrained", *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_what_is_verified_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--seed", "1", "criteria"]) == 2
    assert "give `argprune verify criteria` first" in capsys.readouterr().err
