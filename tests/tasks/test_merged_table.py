"""Tables of studies' scripts: new rows replace those of the same key, the others stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from merged_table import write_merged


def test_rows_of_other_keys_stay_before_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    first = [{"task": "a", "score": 0.123456789}, {"task": "b", "score": 2.0}]
    assert write_merged(path, first, "task") == 2
    assert write_merged(path, [{"task": "a", "score": 3}, {"task": "a", "score": 4}], "task") == 3
    assert path.read_text() == "task,score\nb,2\na,3\na,4\n"


def test_another_table_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("task,loss\na,1\n")
    with pytest.raises(ValueError, match=r"columns \['task', 'loss'\]; expected \['task', 'score'\]"):
        write_merged(path, [{"task": "a", "score": 3}], "task")
    assert path.read_text() == "task,loss\na,1\n"
