"""Scored lines are written as JSONL, CSV, Parquet and TREC run."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rerank_service.errors import BatchError
from rerank_service.tools.batch.outputs import check_output, write_output

ROWS = [("q1", "p1", -1.5), ("q1", "p,2", 0.1), ("q1", "é", 0.1), ("q0", "p1", 3.25)]


def written(name: str, rows: Sequence[tuple[str, str, float]] = ROWS) -> bytes:
    file = io.BytesIO()
    lines = [json.dumps(dict(zip(("query_id", "passage_id", "logit"), row, strict=True))).encode() for row in rows]
    write_output(Path(name), (line + b"\n" for line in lines), file)
    return file.getvalue()


def test_json_lines() -> None:
    assert [tuple(json.loads(line).values()) for line in written("o.jsonl").splitlines()] == ROWS


def test_csv() -> None:
    assert written("o.csv").decode() == 'query_id,passage_id,logit\nq1,p1,-1.5\nq1,"p,2",0.1\nq1,é,0.1\nq0,p1,3.25\n'


def test_parquet() -> None:
    table = pq.read_table(io.BytesIO(written("o.parquet")))

    assert [tuple(row.values()) for row in table.to_pylist()] == ROWS


def test_a_run_is_ranked_with_ties_in_the_order_of_the_input() -> None:
    assert written("o.trec").decode().splitlines() == [
        "q1 Q0 p,2 1 0.1 rerank-service",
        "q1 Q0 é 2 0.1 rerank-service",
        "q1 Q0 p1 3 -1.5 rerank-service",
        "q0 Q0 p1 1 3.25 rerank-service",
    ]


def test_values_a_trec_run_cannot_represent_are_errors() -> None:
    with pytest.raises(BatchError, match="query 'q1' occurs in several places"):
        written("o.run", [*ROWS, ("q1", "p9", 0.0)])
    with pytest.raises(BatchError, match="'p 1' contains spaces"):
        written("o.run", [("q", "p 1", 0.0)])


def test_unsupported_outputs_are_errors(tmp_path: Path) -> None:
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    for path in (tmp_path / "out.xlsx", folder):
        with pytest.raises(BatchError):
            check_output(path)
