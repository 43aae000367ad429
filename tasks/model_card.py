"""The model card of an exported run: the README.md that the Hub shows, with what the run's files say and no more."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from argprune.tasks.report.folders import prove
from argprune.tasks.runs import CERTIFICATE, MODEL, RunDirectory

CARD = "README.md"
# By the end of the model's class; the Hub's name of the task.
_PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
}
# Of the machine that made the run, not of the run.
_LOCAL = ("dense", "data_dir", "output", "report_to")


def model_card(run: RunDirectory, facts: Mapping[str, Any]) -> str:
    """The card of an export, with YAML front matter.

    run: the finished run. facts: the content of export.json. Says whether the run's certificate holds now.
    """
    metrics, config = run.metrics(), run.config()
    metrics = {**metrics, **{key: _name(metrics[key]) for key in ("model", "task", "method")}}
    base = metrics["model"]
    sections = [
        f"# {base} for {metrics['task']}, {metrics['sparsity']['target']:.0%} pruned by `{metrics['method']}`",
        f"Made by argprune {metrics['versions']['argprune']} from `{base}`, exported as `{facts['format']}`.",
        "## How to load",
        _usage(facts["load"]),
        "## Results",
        _results(metrics),
        "## Size and speed",
        _speed(metrics, facts),
        "## Certificate",
        _certificate(run),
        "## How it was made",
        f"The options of the run, for `argprune prune --config FILE --output DIR`:\n\n```yaml\n{_options(config)}```",
    ]
    return f"---\n{_front_matter(run, metrics)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _name(spec: str) -> str:
    """A file or folder, or a class in one, by its last part: where it lies is nobody's business."""
    path = Path(spec)
    return path.name if path.is_absolute() or path.exists() or re.search(r"\.py:\w+$", spec) else spec


def _named(value: Any) -> Any:
    """The same with every text by its name."""
    if isinstance(value, Mapping):
        return {key: _named(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_named(each) for each in value]
    return _name(value) if isinstance(value, str) and value else value


def _front_matter(run: RunDirectory, metrics: Mapping[str, Any]) -> str:
    architectures = json.loads((run.path / MODEL / "config.json").read_text(encoding="utf-8"))["architectures"]
    pipeline = next((task for end, task in _PIPELINES.items() if architectures[0].endswith(end)), None)
    results = [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=metrics["task"],
            dataset_name=metrics["task"],
            dataset_split=split,
            metric_type=metrics["metric"],
            metric_value=values[metrics["metric"]],
        )
        for split, values in metrics["pruned"].items()
    ]
    data = ModelCardData(
        model_name=f"{metrics['model']}-{metrics['task']}-{metrics['method']}",
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["argprune", "pruning", metrics["method"]],
        eval_results=results,
    )
    return str(data.to_yaml()).strip()


def _usage(load: str) -> str:
    *imports, call = load.split("; ")
    package = call.partition(".")[0]
    if package == "transformers":
        lines = [*imports, "import transformers", f"model = {call}"]
    else:
        module, _, name = call.partition("(")[0].rpartition(".")
        lines = [f"from {module} import {name}", f"model = {call.removeprefix(module + '.')}"]
    lines.append("tokenizer = transformers.AutoTokenizer.from_pretrained(folder)")
    if "import transformers" not in lines:
        lines.insert(0, "import transformers")
    return "\n".join(["```python", *lines, "```", "", "`folder` is the one that holds this file."])


def _results(metrics: Mapping[str, Any]) -> str:
    name = metrics["metric"]
    rows = ["| split | " + name + " | dense | difference |", "|---|---|---|---|"]
    for split, values in metrics["pruned"].items():
        dense = (metrics.get("dense") or {}).get(split, {}).get(name)
        ends = ("", "") if dense is None else (f"{dense:.4f}", f"{values[name] - dense:+.4f}")
        rows.append(f"| {split} | {values[name]:.4f} | {ends[0]} | {ends[1]} |")
    seed = f"One run, of seed {metrics['seed']}; the dense reference has the same seed, steps and data."
    return "\n".join([*rows, "", seed])


def _speed(metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    reference, size, sparsity = facts["reference"], facts["bytes"], metrics["sparsity"]
    lines = [
        f"* Pruned: {sparsity['encoder']:.2%} of the prunable weights, {sparsity['model']:.2%} of all parameters.",
        f"* {size['exported'] / 1e6:.1f} MB on disk; {size['masked'] / 1e6:.1f} MB {reference}.",
        f"* Largest difference of a logit from the {reference} model: {facts['largest_difference']:.1e}.",
        "",
        f"| batch | length | {reference}, ms | exported, ms | speed-up |",
        "|---|---|---|---|---|",
    ]
    for row in facts["latency"]:
        before, after = row["masked"], row["exported"]
        lines.append(f"| {row['batch']} | {row['length']} | {before:.1f} | {after:.1f} | {before / after:.2f} |")
    return "\n".join([*lines, "", f"Medians on the machine that exported it, {facts['threads']} CPU thread(s)."])


def _certificate(run: RunDirectory) -> str:
    proof = prove(run.path)
    if proof.state in ("missing", "unreadable"):
        return f"The run's certificate is {proof.state}: {proof.text}."
    verdict = "holds" if proof.state == "verified" else "DOES NOT HOLD"
    stored = json.loads((run.path / CERTIFICATE).read_text(encoding="utf-8"))
    what = "numbers in the saved factors" if stored["kind"] == "size" else "nonzero entries allowed by the saved masks"
    lines = [
        f"The run's certificate **{verdict}** for the files exported: {stored['kept']:,} {what}, of "
        f"{stored['total']:,}; asked for were {stored['wanted']:,.0f} within {stored['tolerance']:,.0f}."
    ]
    lines += [f"* sha256 of the run's `{name}`: `{digest}`" for name, digest in stored["sha256"].items()]
    return "\n".join([lines[0], "", *lines[1:]])


def _options(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in _LOCAL}
    return str(yaml.safe_dump(_named(kept), sort_keys=False))
