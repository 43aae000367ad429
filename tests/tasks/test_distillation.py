"""Distilled runs: the cache gives the bits that the live teacher gives, and a resumed run those of a whole one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedTokenizerFast,
)

from argprune import prune
from argprune.cli import main
from argprune.models import load_model, load_tokenizer
from argprune.solvers.methods import SparseBERT
from argprune.tasks import teacher_cache
from argprune.tasks.distillation import match_labels
from argprune.tasks.kinds.entities import Entities, Sentence
from argprune.tasks.options import plan
from argprune.tasks.runs import RunDirectory
from argprune.tasks.settings import Distill, Settings
from argprune.tasks.texts import SPLITS

STEPS = 8


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one dense reference, which the first run trains."""
    return tmp_path_factory.mktemp("reference") / "dense"


@pytest.fixture
def job(tiny_model: str, tiny_data: str, dense: Path) -> dict[str, Any]:
    return {
        "model": tiny_model,
        "task": "words",
        "data_dir": tiny_data,
        "max_steps": STEPS,
        "batch_size": 8,
        "max_length": 16,
        "log_every": 2,
        "checkpoint_every": 4,
        "sparsity": 0.75,
        "quiet": True,
        "dense": dense,
    }


def bits(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


def same(one: Any, other: Any) -> bool:
    first, second = bits(one), bits(other)
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def log(run: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]


def kill(options: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a run of `sparsebert` and stop it after some steps."""
    after = SparseBERT.after_step

    def dies(self: SparseBERT, step: int, learning_rate: float) -> None:
        if step == 5:
            raise KeyboardInterrupt
        after(self, step, learning_rate)

    with monkeypatch.context() as patched:
        patched.setattr(SparseBERT, "after_step", dies)
        with pytest.raises(KeyboardInterrupt):
            prune(**options, method="sparsebert", output=output)


# Runs


def test_sparsebert_live_cached_and_killed_give_the_same_bits(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = prune(**job, method="sparsebert", output=tmp_path / "cached")
    terms = {f"loss_distill_{name}" for name in ("logits", "embedding", "hidden", "attention")}
    assert terms <= set(log(cached)[0])
    answers = cached.metrics["distillation"]["answers"]
    assert answers["cached"]
    assert answers["asked"] == STEPS * 8
    # Some of the texts are alike.
    assert 0 < answers["computed"] < STEPS * 8
    assert cached.metrics["distillation"]["layers"] == [0, 1]
    assert not list(cached.path.glob("teacher-answers"))
    assert cached.metrics["sparsity"]["encoder"] == pytest.approx(0.75, abs=1e-3)
    assert json.loads((cached.path / "certificate.json").read_text())["holds"]
    live = prune(**job, method="sparsebert", distill={"cache": False}, output=tmp_path / "live")
    assert live.metrics["distillation"]["answers"] == {"cached": False, "reason": "cache is false"}
    assert same(cached, live)

    kill(job, tmp_path / "run", monkeypatch)
    resumed = prune(**job, method="sparsebert", output=tmp_path / "run", resume=True)
    assert same(cached, resumed)
    assert log(resumed) == log(cached)


@pytest.fixture(scope="module")
def teachers(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of models that could be teachers: alike, deeper, wider, with other heads, for shorter texts, ..."""
    changes: dict[str, Any] = {
        "alike": {},
        "deeper": {"num_hidden_layers": 4},
        "wider": {"num_hidden_layers": 3, "hidden_size": 48},
        "heads": {"num_attention_heads": 4},
        "short": {"max_position_embeddings": 7},
        "named": {"id2label": {0: "1", 1: "0"}, "label2id": {"1": 0, "0": 1}},
        "other": {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}},
    }
    base = BertConfig.from_pretrained(tiny_model)
    folders = {}
    for seed, (name, change) in enumerate(changes.items()):
        torch.manual_seed(seed)
        folders[name] = str(tmp_path_factory.mktemp(name))
        config = BertConfig(**{**base.to_dict(), "num_labels": 2, **change})
        BertForSequenceClassification(config).save_pretrained(folders[name])
        load_tokenizer(tiny_model).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize(
    ("teacher", "distill", "layers"),
    [
        ("alike", {"task_loss": 1.0}, [0, 1]),
        ("deeper", {"layers": "learned", "attention": 0}, None),
        ("wider", {"layers": "uniform"}, [1, 2]),
    ],
)
def test_teachers_of_other_sizes(
    job: dict[str, Any], teachers: dict[str, str], tmp_path: Path, teacher: str, distill: Any, layers: Any
) -> None:
    distill = {**distill, "teacher": teachers[teacher]}
    run = prune(**job, method="magnitude", distill=distill, output=tmp_path / "run")
    found = run.metrics["distillation"]["layers"]
    assert found == layers if layers else len(set(found)) == 2
    # Projections are left behind with the teacher.
    assert not any("projection" in name for name in bits(run))
    assert all(torch.isfinite(value).all() for value in bits(run).values())


def test_a_resumed_run_has_its_projections_and_layer_map(
    job: dict[str, Any], teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = {"teacher": teachers["wider"], "layers": "learned", "cache": str(tmp_path / "answers")}
    whole = prune(**job, method="rpp", distill=distill, output=tmp_path / "whole")
    assert whole.metrics["distillation"]["answers"]["computed"] > 0

    stop = RunDirectory.append_log

    def dies(self: RunDirectory, line: Any) -> None:
        if line["step"] == 6:
            raise KeyboardInterrupt
        stop(self, line)

    monkeypatch.setattr(RunDirectory, "append_log", dies)
    with pytest.raises(KeyboardInterrupt):
        prune(**job, method="rpp", distill=distill, output=tmp_path / "run")
    monkeypatch.undo()
    checkpoint = RunDirectory(tmp_path / "run").last_checkpoint()
    assert checkpoint is not None
    assert any("distillation_projections" in name for name in load_file(checkpoint / "model.safetensors"))
    resumed = prune(**job, method="rpp", distill=distill, output=tmp_path / "run", resume=True)
    assert same(whole, resumed)
    assert log(resumed) == log(whole)
    # Another run's answers are there for it; nothing is computed twice.
    assert resumed.metrics["distillation"]["answers"]["computed"] == 0
    assert len(list((tmp_path / "answers").iterdir())) == 1


def test_the_reference_learns_from_nobody(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    plain = prune(**job, method="magnitude", output=tmp_path / "plain")
    assert "distillation" not in plain.metrics
    taught = prune(**job, method="magnitude", distill=True, output=tmp_path / "taught")
    assert not same(plain, taught)
    config = yaml.safe_load((dense / "config.yaml").read_text())
    assert config["distill"] is None
    again = plan(yaml.safe_load((taught.path / "config.yaml").read_text()))
    assert again.settings.distill == Distill()


def test_factors_learn_too(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**{**job, "sparsity": 0.3}, method="flop", distill=True, output=tmp_path / "run")
    assert "loss_distill_attention" in log(run)[0]
    assert run.metrics["distillation"]["answers"]["cached"]
    # Smaller factors teach as well: their folder lacks the matrices, by name, but nothing else.
    taught = prune(**job, method="magnitude", distill={"teacher": str(run.path / "model")}, output=tmp_path / "taught")
    assert taught.metrics["distillation"]["layers"] == [0, 1]


def test_in_halves(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**job, method="sparsebert", precision="bf16", output=tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in bits(run).values())
    # The teacher computes in float32 all the same.
    full = prune(**job, method="sparsebert", output=tmp_path / "full")
    for one, other in zip(log(run), log(full), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.1)


def test_the_released_sparsebert(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**job, method={"name": "sparsebert", "literal": True}, output=tmp_path / "run")
    assert not run.metrics["distillation"]["answers"]["cached"]
    rates = {line["learning_rate"] for line in log(run)}
    assert rates == {3e-4}
    assert json.loads((run.path / "certificate.json").read_text())["holds"]


def test_on_the_command_line(job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**job, "output": tmp_path / "run"}
    del options["quiet"]
    arguments = ["prune", "-q", *(f"--{name}={value}" for name, value in options.items())]
    distill = ["--method=sparsebert", "--distill.temperature=2", "--distill.hidden=0"]
    assert main([*arguments, *distill]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["distill"]["temperature"] == 2
    assert config["distill"]["hidden"] == 0
    assert config["distill"]["logits"] == 1
    repeated = ["prune", "-q", f"--config={tmp_path / 'run' / 'config.yaml'}", f"--output={tmp_path / 'again'}"]
    assert main(repeated) == 0
    assert same(RunPath(tmp_path / "run"), RunPath(tmp_path / "again"))
    other = ["prune", "-q", "--method=rpp", "--sparsity=0.5", f"--output={tmp_path / 'other'}"]
    assert main([*other, "--distill.temperature=0"]) == 2
    assert capsys.readouterr().err.endswith("error: distill temperature 0.0: it must be finite and > 0.\n")


class RunPath:
    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda", "distill": True}, "^distill: a one-shot method trains nothing"),
        ({"method": "dense", "sparsity": None, "distill": True}, r"give a teacher \(distill\.teacher\), or leave"),
        ({"method": "pins", "distill": True}, "^distill task_loss 0.0, but self_regularization 'milestones' weighs"),
        ({"method": "rpp", "distill": {"hiden": 1}}, "^distill has no option 'hiden'. It has: logits, hidden,"),
        ({"method": "rpp", "distill": "yes"}, "^distill 'yes'; give true, false, or a mapping of options"),
        ({"method": "rpp", "distill": {"cache_gib": 0}}, "^distill cache_gib 0: it must be finite and > 0"),
        ({"method": "rpp", "distill": {"cache": 3}}, "^distill cache 3; give true, false or a folder"),
        ({"method": "rpp", "distill": {"teacher": ""}}, "^distill teacher ''; give a folder or a hub id"),
    ],
)
def test_options_that_do_not_go_together(job: dict[str, Any], tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**{**job, **options}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("teacher", "distill", "message"),
    [
        ("heads", {}, "has 4 attention heads, the student 2; scores are compared head by head. Set attention to 0"),
        ("deeper", {}, "^layers 'identity', but the student has 2 layers and the teacher 4"),
        ("minilm", {}, "^Cannot|its vocabulary is not that of the run's model"),
        ("bare", {}, r"has no head for classification: its checkpoint lacks 'classifier\.bias', .* Give a model that"),
        ("short", {}, r"reads at most 7 tokens, but the longest training text has 10; set max_length to 7, or give an"),
    ],
)
def test_teachers_that_cannot_be(
    job: dict[str, Any], teachers: dict[str, str], tmp_path: Path, teacher: str, distill: Any, message: str
) -> None:
    folders = {**teachers, "bare": job["model"]}
    distill = {**distill, "teacher": folders.get(teacher, teacher)}
    with pytest.raises(ValueError, match=message):
        prune(**job, method="rpp", distill=distill, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# What teachers read and tell


@pytest.fixture
def pairs(job: dict[str, Any], tmp_path: Path, write_rows: Any) -> dict[str, Any]:
    """The job on pairs, whose label says which of both texts has the word w1, with names for labels."""
    draw, rows = random.Random(0), []
    for i in range(300):
        texts = [[f"w{draw.randrange(2, 60)}" for _ in range(2)] for _ in range(2)]
        texts[i % 2][draw.randrange(2)] = "w1"
        first, second = map(" ".join, texts)
        rows.append({"text": first, "text_pair": second, "label": ("first", "second")[i % 2]})
    for split, part in {"train": rows[:200], "dev": rows[200:250], "test": rows[250:]}.items():
        write_rows(tmp_path / "data" / "where" / f"{split}.jsonl.gz", part)
    return {**job, "data_dir": str(tmp_path / "data"), "task": "where", "dense": tmp_path / "dense"}


def save_tokenizer(model: str, folder: Path, **options: Any) -> None:
    """The tokenizer of the tiny model, in whose pairs the second segment begins after the first separator."""
    tokenizer = load_tokenizer(model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **options,
    ).save_pretrained(folder)


def answers(folder: Path) -> list[torch.Tensor]:
    """The logits in a cache, sorted."""
    files = sorted(folder.glob("*/*.safetensors"))
    found = [value for file in files for name, value in load_file(file).items() if name.endswith("logits")]
    return sorted(found, key=lambda value: value.tolist())


def test_a_teacher_reads_segments_that_its_student_does_not(pairs: dict[str, Any], tmp_path: Path) -> None:
    tiny = pairs["model"]
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    torch.manual_seed(1)
    teacher = BertForSequenceClassification(BertConfig.from_pretrained(tiny, num_labels=2))
    with torch.no_grad():
        # Far apart, so that answers without segments would be others.
        teacher.bert.embeddings.token_type_embeddings.weight.mul_(50)
    teacher.save_pretrained(tmp_path / "teacher")
    save_tokenizer(tiny, tmp_path / "teacher", **names)
    config = DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    DistilBertModel(config).save_pretrained(tmp_path / "student")
    save_tokenizer(tiny, tmp_path / "student", model_input_names=["input_ids", "attention_mask"])
    BertModel.from_pretrained(tiny).save_pretrained(tmp_path / "reader")
    save_tokenizer(tiny, tmp_path / "reader", **names)
    logits = {"hidden": 0, "attention": 0, "embedding": 0, "teacher": str(tmp_path / "teacher")}
    kept = []
    for model in ("student", "reader"):
        distill = {**logits, "cache": str(tmp_path / f"answers-{model}")}
        options = {**pairs, "model": str(tmp_path / model), "dense": tmp_path / f"dense-{model}"}
        prune(**options, method="magnitude", distill=distill, output=tmp_path / f"run-{model}")
        kept.append(answers(tmp_path / f"answers-{model}"))
    assert len(kept[0]) == len(kept[1]) > 32
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))
    save_tokenizer(tiny, tmp_path / "teacher", **names)
    layout = json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())
    layout["post_processor"]["pair"][2]["SpecialToken"]["type_id"] = 1
    (tmp_path / "teacher" / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(ValueError, match=r"reads segment ids, the run's model does not: its second segments do not"):
        prune(**{**options, "model": str(tmp_path / "student")}, method="rpp", distill=logits, output=tmp_path / "no")


def test_classes_are_matched_by_their_names(
    job: dict[str, Any], teachers: dict[str, str], tmp_path: Path, write_rows: Any
) -> None:
    """The order of a teacher's labels is its own, unless it has no names for them."""
    kept = {}
    # A copy of the teacher "named" whose names say nothing: labels are numbered.
    plain = BertForSequenceClassification.from_pretrained(teachers["named"])
    plain.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    plain.save_pretrained(tmp_path / "plain")
    load_tokenizer(job["model"]).save_pretrained(tmp_path / "plain")
    for name, folder in {"named": teachers["named"], "plain": str(tmp_path / "plain")}.items():
        distill = {"hidden": 0, "attention": 0, "embedding": 0, "teacher": folder, "cache": str(tmp_path / name / "a")}
        prune(**job, method="magnitude", distill=distill, output=tmp_path / name / "run")
        kept[name] = answers(tmp_path / name / "a")
    flipped = sorted((value.flip(0) for value in kept["plain"]), key=lambda value: value.tolist())
    assert all(torch.equal(one, other) for one, other in zip(kept["named"], flipped, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(kept["named"], kept["plain"], strict=True))


@pytest.mark.parametrize(
    ("told", "labels", "order"),
    [
        (["no", "yes"], ["no", "yes"], None),
        (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], ["entailment", "neutral", "contradiction"], (2, 1, 0)),
        (["b", "c", "a"], ["a", "b", "c"], (2, 0, 1)),
        (["LABEL_0", "LABEL_1"], ["no", "yes"], None),
        (["no", "yes"], ["0", "1"], None),
        # Names that differ by their case alone.
        (["a", "A"], ["A", "a"], (1, 0)),
    ],
)
def test_orders_of_labels(told: list[str], labels: list[str], order: Any) -> None:
    assert match_labels("it", told, labels) == order


def test_a_teacher_of_other_labels_is_refused(pairs: dict[str, Any], teachers: dict[str, str], tmp_path: Path) -> None:
    message = "tells good, bad, but the task's labels are first, second; give a teacher of these labels, or name them"
    with pytest.raises(ValueError, match=message):
        prune(**pairs, method="rpp", distill={"teacher": teachers["other"]}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_saved_says_what_its_labels_are_called(pairs: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**pairs, method="sparsebert", output=tmp_path / "run")
    assert run.metrics["distillation"]["layers"] == [0, 1]
    for folder in (tmp_path / "dense", run.path):
        config = json.loads((folder / "model" / "config.json").read_text())
        assert config["id2label"] == {"0": "first", "1": "second"}
        assert config["label2id"] == {"first": 0, "second": 1}


def test_taggers_say_what_their_tags_are_called(tiny_model: str) -> None:
    rows = [Sentence(("w1", "w2"), ("O", "B-X"))]
    task = Entities("tags", ["O", "B-X", "I-X"], dict.fromkeys(SPLITS, rows))
    config = load_model(tiny_model, kind=task.kind, **task.model_options()).config
    assert config.id2label == {0: "O", 1: "B-X", 2: "I-X"}


@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_language_models_with_padded_vocabularies(job: dict[str, Any], tmp_path: Path, padded: str) -> None:
    (tmp_path / "data" / "lm").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        lines = [" ".join(f"w{(i * 7 + j * 3) % 60}" for j in range(12)) for i in range(20)]
        (tmp_path / "data" / "lm" / f"{split}.txt").write_text("\n".join(lines))
    tokenizer = load_tokenizer(job["model"])
    tokenizer.eos_token = "[SEP]"
    for name in ("teacher", "student"):
        config = GPT2Config(vocab_size=96 if name == padded else 64, n_embd=32, n_layer=2, n_head=2, n_positions=16)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    options = {**job, "model": str(tmp_path / "student"), "task": "lm", "data_dir": str(tmp_path / "data")}
    distill = {"teacher": str(tmp_path / "teacher"), "cache": str(tmp_path / "answers")}
    run = prune(**{**options, "dense": None}, method="magnitude", distill=distill, output=tmp_path / "run")
    assert {value.shape[-1] for value in answers(tmp_path / "answers")} == {64}
    assert log(run)[0]["loss_distill_logits"] < 5
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"has 60 outputs, the student (64|96), and their tokenizer 64 tokens; both"):
        prune(**options, method="rpp", distill=distill, output=tmp_path / "no")


def test_scores_of_causal_classifiers_count_alike_in_parts(job: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, **options)
    GPT2Model(config).save_pretrained(tmp_path / "model")
    load_tokenizer(job["model"]).save_pretrained(tmp_path / "model")
    torch.manual_seed(5)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    load_tokenizer(job["model"]).save_pretrained(tmp_path / "teacher")
    distill = {"logits": 0, "embedding": 0, "hidden": 0, "teacher": str(tmp_path / "teacher")}
    losses = []
    # Texts of all lengths in a batch, and parts of one or two of them.
    parts = {**job, "model": str(tmp_path / "model"), "dense": tmp_path / "dense", "batch_size": 60, "max_steps": 1}
    for accumulated in (1, 40):
        run = prune(
            **{**parts, "log_every": 1, "gradient_accumulation_steps": accumulated},
            method="magnitude",
            distill=distill,
            output=tmp_path / f"run-{accumulated}",
        )
        losses.append(log(run)[0]["loss_distill_attention"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Without a teacher


def test_false_is_not_the_default_of_a_method_that_distills(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = prune(**job, method="sparsebert", distill=False, output=tmp_path / "alone")
    assert "distillation" not in alone.metrics
    assert "loss_distill_logits" not in log(alone)[0]
    assert yaml.safe_load((alone.path / "config.yaml").read_text())["distill"] is False
    assert alone.metrics["sparsity"]["encoder"] == pytest.approx(0.75, abs=1e-3)
    again = ["prune", "-q", f"--config={alone.path / 'config.yaml'}", f"--output={tmp_path / 'again'}"]
    assert main(again) == 0
    assert same(alone, RunPath(tmp_path / "again"))

    kill({**job, "distill": False}, tmp_path / "run", monkeypatch)
    with pytest.raises(ValueError, match="distill was False and is now None"):
        prune(**job, method="sparsebert", output=tmp_path / "run", resume=True)
    assert same(alone, prune(**job, method="sparsebert", distill=False, output=tmp_path / "run", resume=True))


def test_a_run_that_replaces_a_killed_one_leaves_no_answers_of_it(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = SparseBERT.after_step

    def dies(self: SparseBERT, step: int, learning_rate: float) -> None:
        if step == 5:
            raise KeyboardInterrupt
        after(self, step, learning_rate)

    monkeypatch.setattr(teacher_cache, "_SHARD_TEXTS", 8)
    monkeypatch.setattr(SparseBERT, "after_step", dies)
    with pytest.raises(KeyboardInterrupt):
        prune(**job, method="sparsebert", output=tmp_path / "run")
    monkeypatch.undo()
    assert list((tmp_path / "run" / "teacher-answers").rglob("*.safetensors"))
    prune(**job, method="magnitude", output=tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "teacher-answers").exists()


def test_a_file_is_no_folder_for_answers(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = rf"^distill cache {tmp_path / 'file'}: {tmp_path / 'file'} is a file; give a folder\.$"
    with pytest.raises(ValueError, match=message):
        prune(**job, method="rpp", distill={"cache": str(tmp_path / "file")}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_are_those_of_the_texts_not_of_their_copies(job: dict[str, Any], tmp_path: Path) -> None:
    options = {**job, "max_steps": None, "epochs": 1.5, "evaluate_each_epoch": True, "batch_size": 16}
    evaluated = []
    for augment in (False, {"copies": 3}):
        changes = {"augment": augment, "dense": tmp_path / f"{bool(augment)}-dense"}
        run = prune(**{**options, **changes}, method="magnitude", output=tmp_path / f"{bool(augment)}")
        evaluated.append([line["step"] for line in log(run) if "eval_loss" in line])
    # After each epoch, and at the end.
    assert evaluated == [[10, 15], [10, 15]]


def test_an_augmented_run_takes_the_same_steps(job: dict[str, Any], tmp_path: Path) -> None:
    distill = {"hidden": 0, "attention": 0, "embedding": 0}
    run = prune(**job, method="magnitude", distill=distill, augment={"copies": 2}, output=tmp_path / "run")
    assert run.metrics["rows"]["train"] > 160
    assert run.metrics["steps"] == STEPS
    assert run.metrics["dense"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda", "augment": True}, "^augment, but method 'wanda' trains nothing"),
        ({"method": "rpp", "augment": {"by": "glove"}}, "^augment by 'glove'; choose one of neighbours, mlm"),
        ({"method": "rpp", "augment": {"by": "mlm"}}, "^augment by 'mlm' with masked language model None; give"),
        ({"method": "rpp", "augment": {"copies": 0}}, "^augment copies 0: at least 1"),
        ({"method": "rpp", "augment": {"rate": 2.0}}, "^augment rate 2.0: a probability"),
        ({"method": "rpp", "augment": {"by": "mlm", "model": "minilm"}}, "^augment: minilm has not the vocabulary"),
    ],
)
def test_augmentations_that_cannot_be(job: dict[str, Any], tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**{**job, **options}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_take_options_in_every_form() -> None:
    assert Settings().distill is None
    # What the method would learn from a teacher is not learned either.
    assert Settings(distill=False).distill is False
    assert Settings(distill=True).distill == Settings(distill=Distill()).distill == Distill()
    assert Settings(distill={"hidden": 0.5}).distill == Distill(hidden=0.5)  # type: ignore[arg-type]
