import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5Model

from argprune import prune
from argprune.models import find_weights, load_model, load_tokenizer
from argprune.solvers.groups import Weight
from argprune.solvers.methods import Magnitude
from argprune.tasks.certificate import check_certificate
from argprune.tasks.data import load_task
from argprune.tasks.encoded import LengthGroupedSampler
from argprune.tasks.runs import RunDirectory, RunError, write_yaml

STEPS = 40
SMALL: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": 8,
    "max_length": 16,
    "log_every": 5,
    "checkpoint_every": 5,
    "learning_rate": 1e-3,
}


@pytest.fixture
def job(tiny_model: str, tiny_data: str) -> dict[str, Any]:
    return {"model": tiny_model, "task": "words", "data_dir": tiny_data, "quiet": True, **SMALL}


@pytest.fixture(scope="module")
def dense(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "run"
    prune(model=tiny_model, task="words", data_dir=tiny_data, method="dense", output=path, quiet=True, **SMALL)
    return path


def bits(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model" / "model.safetensors")


def assert_same_bits(first: Path, second: Path) -> None:
    a, b = bits(first), bits(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["magnitude", "rpp", {"name": "rpp", "metric": "decoupled", "scope": "global"}])
def test_run_directory(job: dict[str, Any], dense: Path, tmp_path: Path, method: Any) -> None:
    run = prune(**job, method=method, sparsity=0.75, output=tmp_path / "run", dense=dense)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics == run.metrics
    total = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    # Every matrix's quarter is whole here, so the sparsity is exact whatever the scope.
    assert metrics["sparsity"]["encoder"] == metrics["sparsity"]["target"] == 0.75
    assert metrics["compression"]["encoder"] == 4
    assert 0 < metrics["sparsity"]["model"] < 0.75
    assert metrics["dense"] == json.loads((dense / "metrics.json").read_text())["pruned"]
    assert metrics["steps"] == STEPS
    assert set(metrics["pruned"]) == {"validation", "test"}
    assert 0 <= metrics["pruned"]["test"]["accuracy"] <= 1
    masks = run.masks()
    assert sum(int(mask.sum()) for mask in masks.values()) == total / 4
    assert check_certificate(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "certificate.json").read_text())["holds"]
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(5, STEPS + 1, 5))
    assert {"loss", "learning_rate", "sparsity"} <= set(lines(tmp_path / "run")[-1])
    assert lines(tmp_path / "run")[-1]["sparsity"] == 0.75
    if method != "magnitude":
        assert metrics["method_report"] == {"prox_sparsity": 0.75, "top_up": 0}
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not list((tmp_path / "run").glob(".*.tmp"))

    # The zeros survive save_pretrained and from_pretrained, and are those of the masks.
    reloaded = load_model(str(tmp_path / "run" / "model"), num_labels=2)
    for weight in find_weights(reloaded):
        assert torch.equal(weight.parameter != 0, masks[weight.name])
    # config.yaml repeats the run.
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    again = prune(**{**config, "quiet": True}, output=tmp_path / "again")
    assert_same_bits(tmp_path / "run", again.path)


def test_every_test_example_is_judged(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    run = prune(**job, method="magnitude", sparsity=0.9, output=tmp_path / "run", dense=dense)
    scores = {path: load_file(path / "scores.safetensors")["test"] for path in (dense, run.path)}
    assert scores[run.path].double().mean() == pytest.approx(run.metrics["pruned"]["test"]["accuracy"])
    rows = load_task("words", job["data_dir"]).splits["test"]
    model, tokenizer = run.model(), load_tokenizer(str(run.path / "model"))
    with torch.no_grad():
        alone = [model(**tokenizer(row.text, return_tensors="pt")).logits.argmax() == row.label for row in rows]
    # In the order of the task's rows, whatever order they were predicted in.
    assert [bool(right) for right in alone] == [bool(score) for score in scores[run.path]]
    digests = set()
    for path in scores:
        with safe_open(path / "scores.safetensors", "pt") as file:
            digests.add(file.metadata()["rows"])
    assert len(digests) == 1


def test_dense_reference_is_trained_inside_the_run(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**{**job, "max_steps": 3}, method="magnitude", sparsity=0.5, output=tmp_path / "run")
    reference = RunDirectory(tmp_path / "run" / "dense")
    assert reference.finished
    assert run.metrics["dense"] == reference.metrics()["pruned"]
    assert reference.metrics()["sparsity"]["encoder"] == 0


def test_seed_decides_everything(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    again = prune(**job, method="dense", output=tmp_path / "a")
    assert_same_bits(dense, again.path)
    other = prune(**job, method="dense", seed=1, output=tmp_path / "b")
    assert any(not torch.equal(tensor, bits(dense)[name]) for name, tensor in bits(other.path).items())


# flop: among gates, and after components were dropped.
KILLED = [
    ("rpp", 10),
    ("magnitude", 15),
    ("rpp", 30),
    ("movement", 15),
    ("l0", 15),
    ("cofi", 15),
    ("flop", 15),
    ("flop", 30),
]


@pytest.mark.parametrize(("method", "kill_at"), KILLED)
def test_kill_and_resume_gives_the_same_bits(
    job: dict[str, Any], dense: Path, tmp_path: Path, method: str, kill_at: int
) -> None:
    whole = prune(**job, method=method, sparsity=0.75, output=tmp_path / "whole", dense=dense)
    options = {key: value for key, value in job.items() if key != "quiet"}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**options, "method": method, "sparsity": 0.75, "dense": str(dense)}))
    command = ["prune", "--config", str(config), "--output", str(tmp_path / "run"), "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "argprune", *command], env=environment)
    marker = tmp_path / "run" / f"checkpoint-{kill_at}" / "argprune.json"
    deadline = time.monotonic() + 120
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    run = RunDirectory(tmp_path / "run")
    assert not run.finished
    # What a kill in the middle of a checkpoint leaves behind.
    (run.path / "checkpoint-39").mkdir()
    (run.path / "checkpoint-39" / "optimizer.pt").write_bytes(b"half")
    with (run.path / "log.jsonl").open("a") as log:
        log.write('{"step": 39, "lo')

    resumed = prune(**job, method=method, sparsity=0.75, output=tmp_path / "run", dense=dense, resume=True)
    assert_same_bits(whole.path, resumed.path)
    assert [line["step"] for line in lines(resumed.path)] == [line["step"] for line in lines(whole.path)]
    assert resumed.metrics["pruned"] == whole.metrics["pruned"]
    assert resumed.metrics["method_report"] == whole.metrics["method_report"]


def test_resume_after_the_last_checkpoint(
    job: dict[str, Any], dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prune(**job, method="rpp", sparsity=0.75, output=tmp_path / "whole", dense=dense)

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("argprune.tasks.job._save", die)
    with pytest.raises(KeyboardInterrupt):
        prune(**job, method="rpp", sparsity=0.75, output=tmp_path / "run", dense=dense)
    monkeypatch.undo()
    resumed = prune(**job, method="rpp", sparsity=0.75, output=tmp_path / "run", dense=dense, resume=True)
    assert_same_bits(whole.path, resumed.path)
    assert resumed.metrics["method_report"] == whole.metrics["method_report"]


class Poisoned(Magnitude):
    """Sets one weight to NaN after step 22."""

    def attach(self, weights: Any, total_steps: int) -> None:
        super().attach(weights, total_steps)
        self.victim: Weight = weights[0]

    def after_step(self, step: int, learning_rate: float) -> None:
        super().after_step(step, learning_rate)
        if step == self.poison_at:
            self.victim.parameter.data[0, 0] = float("nan")

    poison_at = 22


class PoisonedAtCheckpoint(Poisoned):
    """Sets one weight to NaN in the very step that a checkpoint follows."""

    poison_at = 24


@pytest.mark.parametrize(
    ("name", "message"),
    [("Poisoned", "loss is nan at step 24"), ("PoisonedAtCheckpoint", "NaN or Inf after step 25")],
)
def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    job: dict[str, Any], dense: Path, tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test module goes by another name under importlib mode.
    monkeypatch.setitem(sys.modules, "poison", sys.modules[__name__])
    with pytest.raises(RunError, match=message) as caught:
        prune(**job, method=f"poison:{name}", sparsity=0.5, output=tmp_path / "run", dense=dense)
    assert "checkpoint-20" in str(caught.value)
    assert RunDirectory(tmp_path / "run").last_checkpoint() == tmp_path / "run" / "checkpoint-20"
    saved = load_file(tmp_path / "run" / "checkpoint-20" / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())
    assert not RunDirectory(tmp_path / "run").finished


def test_finished_run_is_never_overwritten_unasked(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    small = {**job, "max_steps": 3, "output": tmp_path / "run", "dense": tmp_path / "dense"}
    first = prune(**small, method="magnitude", sparsity=0.5)
    with pytest.raises(ValueError, match="holds a finished run; give --overwrite"):
        prune(**small, method="magnitude", sparsity=0.5)
    assert prune(**small, method="magnitude", sparsity=0.5, resume=True).metrics == first.metrics
    with pytest.raises(ValueError, match=r"sparsity was 0\.5 and is now 0\.6"):
        prune(**small, method="magnitude", sparsity=0.6, resume=True)
    # Bad input is found before the old run is touched.
    with pytest.raises(ValueError, match="Unknown task"):
        prune(**{**small, "task": "nope"}, method="magnitude", sparsity=0.6, overwrite=True)
    assert RunDirectory(tmp_path / "run").metrics() == first.metrics
    second = prune(**small, method="magnitude", sparsity=0.6, overwrite=True)
    assert second.metrics["sparsity"]["target"] == 0.6


def test_overwrite_replaces_the_reference_inside_but_not_a_shared_one(job: dict[str, Any], tmp_path: Path) -> None:
    small = {**job, "max_steps": 2, "method": "magnitude", "sparsity": 0.5}
    inside = prune(**small, output=tmp_path / "run").path / "dense"
    prune(**small, seed=1, output=tmp_path / "run", overwrite=True)
    assert RunDirectory(inside).metrics()["seed"] == 1
    with pytest.raises(ValueError, match="has seed 1, this run 2"):
        prune(**small, seed=2, output=tmp_path / "other", dense=inside, overwrite=True)
    assert RunDirectory(inside).metrics()["seed"] == 1


def files(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("controls", [{"overwrite": True}, {"resume": True}])
def test_a_run_does_not_start_from_its_own_model(
    job: dict[str, Any], dense: Path, tmp_path: Path, controls: dict[str, bool]
) -> None:
    shutil.copytree(dense, tmp_path / "run")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"Model .*run/model is in output .*run, which is to be replaced"):
        prune(**{**job, "model": str(tmp_path / "run" / "model"), **controls}, method="dense", output=tmp_path / "run")
    assert files(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_is_not_its_own_reference(job: dict[str, Any], dense: Path, tmp_path: Path, overwrite: bool) -> None:
    shutil.copytree(dense, tmp_path / "dense")
    (tmp_path / "link").symlink_to("dense", target_is_directory=True)
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "dense").symlink_to(".", target_is_directory=True)
    before = files(tmp_path)
    for output, reference in (("dense", "dense"), ("link", "dense"), ("dense", "link"), ("x/../new", "new")):
        with pytest.raises(ValueError, match=r"Output .* is the dense reference .* itself; give another folder"):
            prune(
                **job,
                method="magnitude",
                sparsity=0.5,
                output=tmp_path / output,
                dense=tmp_path / reference,
                overwrite=overwrite,
            )
    with pytest.raises(ValueError, match="itself; give another folder"):
        prune(**job, method="magnitude", sparsity=0.5, output=tmp_path / "loop", overwrite=overwrite)
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


FOREIGN = [
    b"lr: 0.1\n",
    b"method: adam\n",
    b"method: {lr: 0.1}\n",
    b"- a\n",
    b"a: [1\n",
    b"model: \xe9\n",
    b"",
]


@pytest.mark.parametrize("config", FOREIGN)
def test_a_folder_with_another_programs_config_is_no_run(job: dict[str, Any], tmp_path: Path, config: bytes) -> None:
    """Neither as a run to replace nor as a dense reference, named or where a run has its own."""
    for folder in (tmp_path / "foreign", tmp_path / "run" / "dense"):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights.bin").write_bytes(b"precious")
        (folder / "metrics.json").write_text("{}")
        (folder / "config.yaml").write_bytes(config)
    own = tmp_path / "run"
    write_yaml(own / "config.yaml", {"method": {"name": "magnitude"}})
    before = files(tmp_path)
    small: dict[str, Any] = {**job, "max_steps": 2, "method": "magnitude", "sparsity": 0.5, "overwrite": True}
    with pytest.raises(ValueError, match=r"exists and is not a run \(config\.yaml names no method\)"):
        prune(**small, output=tmp_path / "foreign")
    given: list[dict[str, Any]] = [{"output": own}, {"output": tmp_path / "new", "dense": tmp_path / "foreign"}]
    for reference in given:
        with pytest.raises(ValueError, match=r"^Dense reference .* is a folder, but no run; give a dense run, or"):
            prune(**small, **reference)
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_foreign_folders_and_files_are_refused(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a run"):
        prune(**job, method="dense", output=tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.png").exists()
    with pytest.raises(ValueError, match="is a file"):
        prune(**job, method="dense", output=tmp_path / "photos" / "cat.png")
    with pytest.raises(ValueError, match=r"Dense reference .*cat\.png is a file; give a dense run"):
        prune(**job, method="rpp", sparsity=0.5, dense=tmp_path / "photos" / "cat.png", output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_in_use_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run").lock(), pytest.raises(ValueError, match="in use by another process"):
        prune(**job, method="dense", output=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.0}, "sparsity 1.0"),
        ({"sparsity": -0.1}, "sparsity -0.1"),
        ({"sparsity": None}, "needs sparsity"),
        ({"method": "rrp"}, "Unknown method 'rrp'. Did you mean 'rpp'"),
        ({"method": {"name": "rpp", "eps": 1}}, "no option 'eps'"),
        ({"method": {"name": "rpp", "eps_rw": 0}}, "eps 0"),
        ({"method": {"name": "rpp", "metric": "constant"}}, "prox_step"),
        ({"method": {"name": "magnitude", "warmup": 0.7, "cooldown": 0.5}}, "their sum < 1"),
        ({"colour": "red"}, "Unknown option 'colour'"),
        ({"learning_rate": 0}, "learning_rate 0"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"include": ["*.nothing"]}, "No weight matches '\\*.nothing'"),
        ({"dense": "dense-of-another-seed"}, "has seed 0, this run 5"),
        ({"biases": "maybe"}, "biases"),
        ({"batch_size": 8.5}, "batch_size"),
        ({"log_every": 1.5}, "log_every"),
        ({"seed": 1.5}, "seed"),
        ({"method": {"name": "magnitude", "every": 2.5}}, "every"),
        ({"method": {"name": "rpp", "eps_rw": "a"}}, "eps_rw: 'a'"),
    ],
)
def test_bad_input_fails_before_anything_is_written(
    job: dict[str, Any], dense: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    options = {**job, "method": "rpp", "sparsity": 0.5, "dense": dense, **change}
    if change.get("dense") == "dense-of-another-seed":
        options |= {"dense": dense, "seed": 5}
    with pytest.raises(ValueError, match=message) as caught:
        prune(**options, output=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_certificate_notices_a_revived_weight(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    run = prune(**{**job, "max_steps": STEPS}, method="magnitude", sparsity=0.5, output=tmp_path / "run", dense=dense)
    assert check_certificate(run.path)
    weights = bits(run.path)
    name, mask = next(iter(run.masks().items()))
    weights[name][~mask] = 1e-9
    save_file(weights, run.path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert not check_certificate(run.path)


def test_sampler_covers_every_row_once_and_differs_by_epoch() -> None:
    lengths = [(7 * i) % 23 + 1 for i in range(150)]
    orders = [list(LengthGroupedSampler(lengths, 8, 0, lambda epoch=epoch: epoch)) for epoch in (0, 0, 1)]  # type: ignore[misc]
    assert sorted(orders[0]) == list(range(150))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    batches = [orders[0][i : i + 8] for i in range(0, 150, 8)]
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    shuffled = sum(8 * max(lengths[i] for i in range(start, min(start + 8, 150))) for start in range(0, 150, 8))
    assert padded < 0.75 * shuffled


def test_a_support_is_transferred_to_another_run(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    first = prune(**job, method="magnitude", sparsity=0.75, output=tmp_path / "first", dense=dense)
    again = {**job, "model": str(first.path / "model"), "seed": 3, "method": "fixed-support"}
    second = prune(**again, sparsity=0.75, output=tmp_path / "second")
    assert all(torch.equal(mask, first.masks()[name]) for name, mask in second.masks().items())
    assert check_certificate(second.path)
    before, after = bits(first.path), bits(second.path)
    assert any(not torch.equal(before[name], after[name]) for name in second.masks())
    with pytest.raises(ValueError, match=r"sparsity 0\.5, but 0\.7500 of the model's weights are zero"):
        prune(**again, sparsity=0.5, output=tmp_path / "third")
    # Not even the reference, which this run would have trained first.
    assert not (tmp_path / "third").exists()


def test_models_that_give_their_states_beside_the_logits(job: dict[str, Any], tiny_model: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "output_hidden_states": True}))
    outputs = []
    for name, model in (("plain", tiny_model), ("states", str(tmp_path / "model"))):
        options = {**job, "model": model, "max_steps": 3, "method": "dense"}
        outputs.append(prune(**options, output=tmp_path / name).metrics["pruned"]["test"])
    assert outputs[0] == outputs[1]


def test_encoder_decoders_classify(job: dict[str, Any], tiny_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        # T5 reads a text's class off its end.
        eos_token_id=tokenizer.sep_token_id,
    )
    config.decoder_start_token_id = 0
    T5Model(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    options = {**job, "model": str(tmp_path / "t5"), "max_steps": 3, "method": "magnitude", "sparsity": 0.5}
    assert prune(**options, output=tmp_path / "run").metrics["sparsity"]["encoder"] == 0.5
