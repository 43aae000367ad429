"""Print docs/results/stdlib-docs.csv as a Markdown table: mean and standard deviation over seeds, in percent.

.venv/bin/python docs/results/summarise.py
"""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

Key = tuple[float, str, float]


def main() -> None:
    """Print the table."""
    runs: dict[Key, list[dict[str, str]]] = defaultdict(list)
    with (Path(__file__).parent / "stdlib-docs.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["status"] == "finished":
                key = (float(row["sparsity_target"]), row["method"], float(row["option.learning_rate"]))
                runs[key].append(row)
    print("| sparsity | method | learning rate | seeds | validation | test | test against dense |")
    print("|---|---|---|---|---|---|---|")
    for (sparsity, method, rate), rows in sorted(runs.items()):
        against = [100 * (float(r["test_accuracy"]) - float(r["dense_test_accuracy"])) for r in rows]
        cells = [f"{sparsity:.0%}", method, f"{rate:g}", str(len(rows))]
        cells += [spread([100 * float(r[f"{split}_accuracy"]) for r in rows]) for split in ("validation", "test")]
        cells.append("" if method == "dense" else spread(against, sign="+"))
        print(f"| {' | '.join(cells)} |")


def spread(values: list[float], sign: str = "") -> str:
    """Mean, and standard deviation where there are several."""
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
