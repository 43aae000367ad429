"""Print the tables of docs/results/README.md from the files beside it.

.venv/bin/python docs/results/summarise.py [--check]

--check: print nothing, but those tables that README.md does not have; exit status 1 if there is any.
"""

import contextlib
import csv
import io
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).parent
Row = dict[str, str]


def main() -> None:
    """Print all tables."""
    tables = (
        methods,
        regularizers,
        pins,
        pins_glue,
        sparsebert,
        when_to_prune,
        tasks,
        blocks,
        one_shot,
        one_shot_layers,
        flop_cls,
        flop_lm,
        criteria,
        operators,
    )
    for number, table in enumerate(tables):
        if number:
            print()
        table()


def methods() -> None:
    """stdlib-docs.csv: a row a sparsity, method and learning rate; mean and standard deviation over seeds."""
    runs: dict[tuple[float, str, float], list[Row]] = defaultdict(list)
    for row in finished("stdlib-docs.csv"):
        runs[float(row["sparsity_target"]), row["method"], float(row["option.learning_rate"])].append(row)
    print("| sparsity | method | learning rate | seeds | validation | test | test against dense |")
    print("|---|---|---|---|---|---|---|")
    for (sparsity, method, rate), rows in sorted(runs.items()):
        cells = [f"{sparsity:.0%}", method, f"{rate:g}", str(len(rows)), *accuracies(rows)]
        cells.append("" if method == "dense" else against_dense(rows))
        print(f"| {' | '.join(cells)} |")


def regularizers() -> None:
    """regularizers.csv: a row a regularizer, best on validation first."""
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in finished("regularizers.csv"):
        if row["method"] == "proximal":
            name = row["option.method.regularizer"] or row["option.method.regularizer.name"]
            rule = row["option.method.reweighting"]
            runs[f"{name}, reweighted ({rule})" if rule else name].append(row)
    print("| regularizer | seeds | validation | test | test against dense |")
    print("|---|---|---|---|---|")
    for name, rows in sorted(runs.items(), key=lambda item: -mean(float(r["validation_accuracy"]) for r in item[1])):
        print(f"| {name} | {len(rows)} | {' | '.join(accuracies(rows))} | {against_dense(rows)} |")


def pins() -> None:
    """pins.csv: a row a sparsity, method, options and learning rate, best on validation first."""
    runs: dict[tuple[float, str, float], list[Row]] = defaultdict(list)
    for row in finished("pins.csv"):
        if row["method"] != "dense":
            runs[float(row["sparsity_target"]), scored(row), float(row["option.learning_rate"])].append(row)

    def order(item: tuple[tuple[float, str, float], list[Row]]) -> tuple[float, float]:
        return -item[0][0], -mean(float(row["validation_accuracy"]) for row in item[1])

    print("| sparsity | method | learning rate | seeds | validation | test | test against dense |")
    print("|---|---|---|---|---|---|---|")
    for (sparsity, method, rate), rows in sorted(runs.items(), key=order):
        cells = [f"{sparsity:.0%}", method, f"{rate:g}", str(len(rows)), *accuracies(rows), against_dense(rows)]
        print(f"| {' | '.join(cells)} |")


def pins_glue() -> None:
    """pins-glue.csv: a row a task, sparsity, method and learning rate, best on validation first."""
    runs: dict[tuple[str, float, str, float], list[Row]] = defaultdict(list)
    for row in finished("pins-glue.csv"):
        name = scored(row)
        runs[row["task"], float(row["sparsity_target"]), name, float(row["option.learning_rate"])].append(row)

    def order(item: tuple[tuple[str, float, str, float], list[Row]]) -> tuple[str, float, float]:
        return item[0][0], -item[0][1], -mean(float(row["validation_accuracy"]) for row in item[1])

    print("| task | sparsity | method | learning rate | seeds | validation | test | test against dense |")
    print("|---|---|---|---|---|---|---|---|")
    for (task, sparsity, method, rate), rows in sorted(runs.items(), key=order):
        cells = [task, f"{sparsity:.0%}", method, f"{rate:g}", str(len(rows)), *accuracies(rows)]
        cells.append("" if method == "dense" else against_dense(rows))
        print(f"| {' | '.join(cells)} |")


def blocks() -> None:
    """blocks.csv: a row a task, sparsity, structure and method, best on validation first."""
    runs: dict[tuple[str, float, str, str], list[Row]] = defaultdict(list)
    for row in finished("blocks.csv"):
        if row["method"] != "dense":
            height = row["option.method.height"]
            structure = f"block columns of {height}" if height else "blocks 16 x 16"
            runs[row["task"], float(row["sparsity_target"]), structure, grouped(row)].append(row)

    def order(item: tuple[tuple[str, float, str, str], list[Row]]) -> tuple[bool, str, float, str, float]:
        task, sparsity, structure, _ = item[0]
        return (
            task != "stdlib-docs",
            task,
            sparsity,
            structure,
            -mean(float(row["validation_accuracy"]) for row in item[1]),
        )

    print("| task | sparsity | structure | method | seeds | validation | test | test against dense |")
    print("|---|---|---|---|---|---|---|---|")
    for (task, sparsity, structure, method), rows in sorted(runs.items(), key=order):
        cells = [task, f"{sparsity:.0%}", structure, method, str(len(rows)), *accuracies(rows), against_dense(rows)]
        print(f"| {' | '.join(cells)} |")


def sparsebert() -> None:
    """sparsebert.csv: a row a task, steps, sparsity, method, teacher and learning rate, best on validation first."""
    runs: dict[tuple[str, int, float, str, float], list[Row]] = defaultdict(list)
    for row in finished("sparsebert.csv"):
        if row["method"] != "dense":
            taught = row["method"] != "sparsebert" and row["option.distill.cache"]
            name = scored(row) + (" + distillation" if taught else "")
            name += ", augmented" if row.get("option.augment") else ""
            size, rate = float(row["sparsity_target"]), float(row["option.learning_rate"])
            runs[row["task"], int(row["steps"]), size, name, rate].append(row)

    def order(item: tuple[tuple[str, int, float, str, float], list[Row]]) -> tuple[bool, str, int, float, float]:
        task, steps, sparsity, *_ = item[0]
        return (
            task != "stdlib-docs",
            task,
            steps,
            -sparsity,
            -mean(float(row["validation_accuracy"]) for row in item[1]),
        )

    print(
        "| task | steps | sparsity | method | learning rate | seeds | validation | test | test against dense | kept of "
        "dense |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (task, steps, sparsity, method, rate), rows in sorted(runs.items(), key=order):
        cells = [task, f"{steps:,}", f"{sparsity:.0%}", method, f"{rate:g}", str(len(rows))]
        cells += [*accuracies(rows), against_dense(rows)]
        print(f"| {' | '.join(cells)} | {kept_of_dense(rows)} |")


def kept_of_dense(rows: list[Row]) -> str:
    """Test accuracy over that of the dense run of the same seed."""
    return f"{mean(float(row['test_accuracy']) / float(row['dense_test_accuracy']) for row in rows):.1%}"


def when_to_prune() -> None:
    """when-to-prune.csv and seed 0 of sparsebert.csv at one rate: a row a way and learning rate."""
    print("| pruned | how | learning rate | validation | test |")
    print("|---|---|---|---|---|")
    for row in finished("when-to-prune.csv"):
        if row["task"] != "stdlib-docs":
            # What the supports come from.
            continue
        if row["method"] == "fixed-support":
            method = Path(row["model"]).name.removeprefix("minilm-").removesuffix("-95")
            print_way("while pre-training", f"{method}, its support kept in fine-tuning", row)
        elif row["method"] != "dense":
            print_way("after fine-tuning", f"{row['method']} + distillation", row)
    for row in finished("sparsebert.csv"):
        place = [row[key] for key in ("task", "seed", "option.learning_rate", "sparsity_target", "steps")]
        if place == ["stdlib-docs", "0", "0.001", "0.95", "384"]:
            taught = row["option.distill.cache"]
            if row["method"] == "sparsebert":
                print_way("while fine-tuning", "sparsebert", row)
            elif row["method"] in ("magnitude", "rpp") and not taught:
                print_way("while fine-tuning", row["method"], row)


def print_way(when: str, how: str, row: Row) -> None:
    """One row of `when_to_prune`."""
    cells = [when, how, f"{float(row['option.learning_rate']):g}", *accuracies([row])]
    print(f"| {' | '.join(cells)} |")


_ONE_SHOT = ("one-shot-magnitude", "wanda", "sparsegpt", "obs", "one-shot-admm", "alps", "shrunk-admm")

_CELLS = (("0.5", "unstructured"), ("0.7", "unstructured"), ("0.8", "unstructured"), ("0.5", "2:4"))


def one_shot() -> None:
    """one-shot.csv: a row a task and method: mean error of all matrices on calibration and held-out tokens, metric."""
    rows = one_shot_rows()
    tasks = sorted({row["task"] for row in rows})
    print("| task | method | 50 % | 70 % | 80 % | 2:4 | s |")
    print("|---|---|---|---|---|---|---|")
    for task in tasks:
        for method in _ONE_SHOT:
            found = {
                (row["sparsity"], row["pattern"]): row
                for row in rows
                if (row["task"], row["method"], row["layer"]) == (task, method, "all")
            }
            if not found:
                continue
            told = [one_shot_cell(found[cell]) if cell in found else "" for cell in _CELLS]
            seconds = sorted(float(row["seconds"]) for row in found.values())
            print(f"| {task} | `{method}` | {' | '.join(told)} | {seconds[0]:.0f} to {seconds[-1]:.0f} |")


def one_shot_cell(row: Row) -> str:
    """Errors, and accuracy in percent or perplexity."""
    test = float(row["test"]) * (100 if row["metric"] == "accuracy" else 1)
    errors = " / ".join(f"{float(row[name]):.4f}"[1:] for name in ("error", "held_out"))
    return f"{errors}, {test:.1f}"


def one_shot_layers() -> None:
    """one-shot.csv: shrunk-admm against alps on every kind of layer: held-out error, and time over all cells."""
    rows = one_shot_rows()
    by_run = {(row["task"], row["layer"], row["sparsity"], row["pattern"], row["method"]): row for row in rows}
    print("| task | kind of layer | 50 % | 70 % | 80 % | 2:4 | time |")
    print("|---|---|---|---|---|---|---|")
    for task, layer in dict.fromkeys((row["task"], row["layer"]) for row in rows):
        told, times = [], []
        for sparsity, pattern in _CELLS:
            pair = [by_run.get((task, layer, sparsity, pattern, method)) for method in ("shrunk-admm", "alps")]
            if None in pair:
                told.append("")
                continue
            ours, theirs = (row for row in pair if row is not None)
            told.append(f"{float(ours['held_out']) / float(theirs['held_out']):.3f}")
            times.append((float(ours["seconds"]), float(theirs["seconds"])))
        ratio = sum(ours for ours, _ in times) / sum(theirs for _, theirs in times)
        print(f"| {task} | {layer} | {' | '.join(told)} | {ratio:.2f} |")


def one_shot_rows() -> list[Row]:
    """All rows of one-shot.csv."""
    with (HERE / "one-shot.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# The metric of a task's kind, where the runs of several are in one table.
_METRICS = ("matthews_correlation", "combined_score", "f1", "bleu", "perplexity", "accuracy")


def tasks() -> None:
    """tasks.csv: a row a task and objective, with the dense and the pruned model's metric on the test split."""
    print("| task | metric | steps | dense | pruned |")
    print("|---|---|---|---|---|")
    for row in finished("tasks.csv"):
        if row["method"] != "dense":
            metric = next(name for name in _METRICS if row.get(f"test_{name}"))
            scores = (float(row[f"{prefix}test_{metric}"]) for prefix in ("dense_", ""))
            digits = 1 if metric == "perplexity" else 3
            name = ", ".join(filter(None, (row["task"], row["option.objective"])))
            cells = [name, metric, row["steps"], *(f"{score:.{digits}f}" for score in scores)]
            print(f"| {' | '.join(cells)} |")


def flop_cls() -> None:
    """flop-cls.csv: a row a task, sparsity, method, options, precision and learning rate, best on validation first."""
    runs: dict[tuple[str, float, str, str, float], list[Row]] = defaultdict(list)
    for row in finished("flop-cls.csv"):
        if row["method"] != "dense":
            given = {
                kind: row[f"option.method.{kind}"] for kind in ("initial", "informed", "rank", "scope", "cooldown")
            }
            # 1 and 1.0 are the same option.
            told = [f"{kind} {value.removesuffix('.0')}" for kind, value in given.items() if value]
            told += ["noise"] if row["option.method.noise"] == "True" else []
            told += ["all factored"] if row["option.method.whole"] == "False" else []
            name = ", ".join([row["method"], *told])
            rate = float(row["option.learning_rate"])
            runs[row["task"], float(row["sparsity_target"]), name, row["precision"], rate].append(row)

    def order(item: tuple[tuple[str, float, str, str, float], list[Row]]) -> tuple[bool, str, float, float]:
        task, sparsity, *_ = item[0]
        return task != "stdlib-docs", task, -sparsity, -mean(float(row["validation_accuracy"]) for row in item[1])

    print("| task | pruned | method | trained in | learning rate | seeds | validation | test | test against dense |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (task, sparsity, method, precision, rate), rows in sorted(runs.items(), key=order):
        cells = [task, f"{sparsity:.0%}", method, precision, f"{rate:g}", str(len(rows)), *accuracies(rows)]
        print(f"| {' | '.join(cells)} | {against_dense(rows)} |")


def flop_lm() -> None:
    """flop-lm.csv: a row a model, the smaller ones by sparsity and perplexity."""
    print("| text | pruned | method | parameters | validation | test | a step, ms | inference, ms | dense / it |")
    print("|---|---|---|---|---|---|---|---|---|")
    with (HERE / "flop-lm.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            options = json.loads(row["options"] or "{}")
            # What tells methods apart: a switch by its name, and what is the same in all rows not at all.
            named = {name: name if value is True else value for name, value in options.items() if value is not False}
            told = ", ".join(str(value) for name, value in named.items() if name != "scope")
            method = row["method"] + (f", {told}" if told else "")
            if row["method"] == "dense":
                width = row["model"].rpartition("-")[2]
                method += f", {width} wide" if width.isdecimal() else ", the start"
            perplexities = (f"{float(row[f'{split}_perplexity']):.1f}" for split in ("validation", "test"))
            times = (f"{float(row[name]):.0f}" for name in ("train_ms", "inference_ms"))
            sparsity = f"{float(row['sparsity']):.0%}" if float(row["sparsity"]) else ""
            cells = [row["task"], sparsity, method, f"{int(row['parameters']) / 1e6:.2f} M", *perplexities, *times]
            print(f"| {' | '.join(cells)} | {float(row['speedup']):.2f} |")


def grouped(row: Row) -> str:
    """The method with what tells its variants apart."""
    if row["method"] != "block-lasso":
        return row["method"]
    if row["option.method.literal"]:
        return "block-lasso, literal"
    if row["option.method.metric"]:
        return f"block-lasso, {row['option.method.metric']}"
    return "block-lasso" + ("" if int(float(row["report.rounds"])) else ", factors fixed")


def scored(row: Row) -> str:
    """The method with what tells its variants apart."""
    if row["method"] != "pins":
        return row["method"]
    criterion = row.get("option.method.criterion") or row["option.method.criterion.name"] or "pins"
    sign = row["option.method.criterion.sign"] or ("displacement" if criterion == "pins" else "")
    masks = row.get("option.method.masks")
    regularized = row["option.method.self_regularization"] != "none"
    if criterion == "platon":
        return "platon, self-regularized"
    name = " ".join(part for part in ("pins", sign or criterion) if part)
    return name + (f", {masks} masks" if masks else "") + (", self-regularized" if regularized else "")


def criteria() -> None:
    """criteria.csv: a row a criterion: its true regret in blocks, what it is made of, and what a whole matrix loses."""
    blocks: dict[str, list[Row]] = defaultdict(list)
    matrices: dict[str, dict[str, float]] = defaultdict(dict)
    with (HERE / "criteria.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["kind"] == "criterion":
                blocks[row["name"]].append(row)
            elif row["kind"] == "matrix":
                matrices[row["name"]][row["layer"]] = float(row["loss"])
    layers = list(dict.fromkeys(layer for losses in matrices.values() for layer in losses))
    heads = [f"layer {layer.split('.layer.')[-1].split('.')[0]}" for layer in layers]
    print(f"| criterion | regret in blocks | proved optimal | {' | '.join(heads)} |")
    print(f"|---|---|---|{'---|' * len(layers)}")
    for name in sorted(blocks, key=lambda name: mean(matrices[name].values())):
        shares = [float(row["share"]) for row in blocks[name]]
        proved = sum(row["certified"] == "True" for row in blocks[name])
        cells = [name, spread_2(shares), f"{proved} of {len(shares)}"]
        cells += [f"{matrices[name][layer]:+.4f}" for layer in layers]
        print(f"| {' | '.join(cells)} |")


def spread_2(values: list[float]) -> str:
    """Mean and standard deviation, two digits."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def operators() -> None:
    """prox.json: milliseconds of argprune, and how many times as long the others take, out of place."""
    rows = json.loads((HERE / "prox.json").read_text(encoding="utf-8"))
    print("| operator | argprune, ms | times a copy | without compilation | fastest other library | the others |")
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["operator"] for row in rows if row["kind"] == "new"):
        sides = {row["library"]: row for row in rows if row["operator"] == name and row["kind"] == "new"}
        own, eager = sides["argprune"], sides.get("eager")
        others = sorted(
            (row["ratio_to_argprune"], library)
            for library, row in sides.items()
            if library not in ("copy", "argprune", "eager")
        )
        told = [f"{library} {ratio:.3g}" for ratio, library in others] or [""]
        cells = [name, f"{own['milliseconds']:.3g}", f"{own['ratio_to_copy']:.2g}"]
        cells += ["" if eager is None else f"{eager['ratio_to_argprune']:.2g}", told[0], ", ".join(told[1:])]
        print(f"| {' | '.join(cells)} |")


def finished(name: str) -> list[Row]:
    """The rows of finished runs."""
    with (HERE / name).open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "finished"]


def accuracies(rows: list[Row]) -> list[str]:
    """Validation and test accuracy in percent."""
    return [spread([100 * float(row[f"{split}_accuracy"]) for row in rows]) for split in ("validation", "test")]


def against_dense(rows: list[Row]) -> str:
    """Test accuracy less that of the dense run of the same seed, in points."""
    return spread([100 * (float(row["test_accuracy"]) - float(row["dense_test_accuracy"])) for row in rows], sign="+")


def spread(values: list[float], sign: str = "") -> str:
    """Mean, and standard deviation where there are several."""
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def check() -> int:
    """Print the tables that README.md does not have as they are; 1 if there is any."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main()
    page = (HERE / "README.md").read_text(encoding="utf-8")
    stale = [table for table in printed.getvalue().strip().split("\n\n") if table not in page]
    for table in stale:
        print(f"docs/results/README.md has not this table of its files:\n{table}\n", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(check())
    main()
