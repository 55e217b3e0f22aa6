"""Every kind of input can be read from any record, and errors name file, line and field."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_service.errors import BatchError
from rerank_service.tools.batch.beir import build_index
from rerank_service.tools.batch.chunks import ChunkReader, plan_chunks
from rerank_service.tools.batch.records import TextPair, pairs_of
from rerank_service.tools.batch.sources import InputFiles, open_source
from tests.models import NASTY_PASSAGES

TEXTS = [passage for passage in NASTY_PASSAGES if passage and "\x00" not in passage]


def files(path: Path, candidates: Path | None = None) -> InputFiles:
    return InputFiles(path, candidates, path.parent / "index.sqlite")


def read(path: Path) -> list[TextPair]:
    return list(pairs_of(open_source(files(path)).records()))


def write_jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    folder.mkdir()
    corpus = [{"_id": f"p{n}", "title": f"Title {n}", "text": text} for n, text in enumerate(TEXTS)]
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": "first?"}, {"_id": "q2", "text": "second?"}])
    return folder


def test_json_rows_of_every_shape(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "in.jsonl",
        [
            {"query_id": "q", "query": "a?", "passage_id": 7, "passage": "b", "anything": ["else"]},
            {"query": "c?", "passages": ["d", "e"], "passage_ids": ["x", "y"]},
            {"query": {"text": "f?"}, "passages": [{"text": "g"}, {"text": "h", "id": "z"}], "truncate": "END"},
        ],
    )
    path.write_text(path.read_text().replace("\n", "\n\n", 1))  # an empty line is skipped, but counts as a line

    assert read(path) == [
        TextPair(1, "q", "a?", "7", "b"),
        TextPair(3, "3", "c?", "x", "d"),
        TextPair(3, "3", "c?", "y", "e"),
        TextPair(4, "4", "f?", "0", "g"),
        TextPair(4, "4", "f?", "z", "h"),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_rows_may_span_lines(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "in.csv"
    quoted = ['"with, comma",a?,2', f'"over{newline}two ""lines""",b?,3']
    rows = ["passage,query,passage_id", "plain,a?,1", *quoted, "last,c?,4"]
    path.write_bytes(("\ufeff" + newline.join(rows)).encode())

    pairs = read(path)

    assert [pair.passage for pair in pairs] == ["plain", "with, comma", f'over{newline}two "lines"', "last"]
    assert [pair.number for pair in pairs] == [2, 3, 4, 6]


def test_a_csv_field_may_exceed_the_csv_modules_default_limit(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text("query\tpassage\nq\t" + "x" * 200_000 + "\n")

    assert len(read(path)[0].passage) == 200_000


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", "folder"])
@pytest.mark.parametrize("chunk_pairs", [1, 3, 7, 100])
def test_every_chunk_can_be_read_alone(tmp_path: Path, beir: Path, suffix: str, chunk_pairs: int) -> None:
    rows = [{"query": f"query {n}", "passage_id": str(n), "passage": TEXTS[n % len(TEXTS)]} for n in range(23)]
    asked = files(tmp_path / f"in{suffix}")
    match suffix:
        case ".jsonl":
            lists = [{"query": "lists", "passages": TEXTS[:count]} for count in (5, 1, 4)]
            write_jsonl(asked.path, [*rows[:3], *lists, *rows[3:]])
        case ".csv":
            import csv

            with asked.path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), asked.path, row_group_size=5)
        case "folder":
            run = tmp_path / "run.trec"
            run.write_text("".join(f"q{1 + n % 2} Q0 p{n % len(TEXTS)} {n} {-n}.5 tag\n" for n in range(23)))
            asked = files(beir, run)
            build_index(beir, asked.index)
    source = open_source(asked)
    whole = list(pairs_of(source.records()))

    plan = plan_chunks(source, chunk_pairs)
    in_order = [pair for reader in [ChunkReader(source)] for chunk in plan.chunks for pair in reader.read(chunk)]
    alone = [pair for chunk in reversed(plan.chunks) for pair in reversed(ChunkReader(source).read(chunk))][::-1]
    alternate = ChunkReader(source)
    odd = [pair for chunk in plan.chunks[::2] for pair in alternate.read(chunk)]

    assert plan.num_pairs == len(whole) > 20
    assert [chunk.num_pairs for chunk in plan.chunks[:-1]] == [chunk_pairs] * (len(plan.chunks) - 1)
    assert in_order == alone == whole
    assert odd == [pair for n, pair in enumerate(whole) if n // chunk_pairs % 2 == 0]


def test_a_folder_has_the_pairs_of_a_run_or_of_qrels(tmp_path: Path, beir: Path) -> None:
    expected = [("q2", "second?", "p1", f"Title 1 {TEXTS[1]}".strip()), ("q1", "first?", "p0", f"Title 0 {TEXTS[0]}")]
    for name, text in {
        "run": "q2 Q0 p1 1 9.5 bm25\nq1 Q0 p0 1 3 bm25\n",
        "qrels": "q2 0 p1 1\nq1 0 p0 2\n",
        "qrels.tsv": "query-id\tcorpus-id\tscore\nq2\tp1\t1\nq1\tp0\t2\n",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        asked = files(beir, path)
        build_index(beir, asked.index)

        assert [tuple(pair)[1:] for pair in pairs_of(open_source(asked).records())] == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.jsonl", '{"query": "q", "passage": "p"}\n{"query": "q"}\n', "line 2: passage is missing"),
        ("in.jsonl", '{"passage": "p"}\n', "line 1: query is missing"),
        ("in.jsonl", '{"query": 3, "passage": "p"}\n', "line 1: query is not text"),
        ("in.jsonl", '{"query": "q", "passage": ""}\n{"query": "", "passage": ""}\n', "line 2: query is blank"),
        ("in.csv", "query,passage\n ,p\n", "line 2: query is blank"),
        ("in.jsonl", '{"query": "q", "passages": []}\n', "line 1: passages is empty"),
        ("in.jsonl", '{"query": "q", "passages": ["a", 5]}\n', "line 1: passages.1 is not text"),
        ("in.jsonl", '{"query": "q", "passages": "a"}\n', "line 1: passages is not a list"),
        (
            "in.jsonl",
            '{"query": "q", "passages": ["a"], "passage_ids": []}\n',
            "passage_ids has 0 entries, but",
        ),
        (
            "in.jsonl",
            '{"query": "q", "passage": "p", "query_id": 1.5}\n',
            "query_id is neither text nor",
        ),
        ("in.jsonl", '{"query": "q"\n', "line 1: not JSON"),
        ("in.jsonl", "[]\n", "line 1: not a JSON object"),
        ("in.jsonl", "\n", "has no pairs"),
        ("in.csv", "query,text\nq,p\n", "line 1: no column passage; the header has query, text"),
        ("in.csv", "query,passage\nq,p\nq\n", "line 3: 1 columns, but the header has 2"),
        ("in.csv", 'query,passage\nq,"p\n', "line 2: unexpected end"),
        ("in.csv", "", "no column query; the header has no columns"),
        ("in.txt", "x", "or end in one of .jsonl"),
        ("in.parquet", "x", "is not a readable Parquet file"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(BatchError) as caught:
        plan_chunks(open_source(files(path)), 10)

    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"query": "q", "passage": "\xff"}\n')

    with pytest.raises(BatchError, match="line 1: not UTF-8"):
        plan_chunks(open_source(files(path)), 10)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("q1 Q0 p9999 1 1 x\n", "line 1: passage 'p9999' is not in the BEIR folder"),
        ("q1 Q0 p1 1 1 x\nq9 Q0 p1 1 1 x\n", "line 2: query 'q9' is not in the BEIR folder"),
        ("q1 p1\n", "line 1: 2 columns"),
    ],
)
def test_candidates_with_unknown_ids(tmp_path: Path, beir: Path, run: str, message: str) -> None:
    path = tmp_path / "run"
    path.write_text(run)
    asked = files(beir, path)
    build_index(beir, asked.index)

    with pytest.raises(BatchError, match=message):
        plan_chunks(open_source(asked), 10)


def test_a_blank_query_of_a_folder_is_an_error_only_if_it_is_a_candidate(tmp_path: Path, beir: Path) -> None:
    with (beir / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q3", "text": " "}\n')
    path = tmp_path / "run"
    path.write_text("q1 Q0 p1 1 1 x\n")
    asked = files(beir, path)
    build_index(beir, asked.index)
    assert plan_chunks(open_source(asked), 10).num_pairs == 1

    path.write_text("q1 Q0 p1 1 1 x\nq3 Q0 p1 1 1 x\n")
    with pytest.raises(BatchError, match=r"run, line 2: text of query 'q3' in .*queries\.jsonl is blank"):
        plan_chunks(open_source(files(beir, path)), 10)


def test_a_repeated_id_is_an_error(tmp_path: Path, beir: Path) -> None:
    with (beir / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "p0", "text": "again"}\n')

    with pytest.raises(BatchError, match=f"line {len(TEXTS) + 1}: _id 'p0' occurs twice"):
        build_index(beir, tmp_path / "index")


def test_an_input_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"query": "q", "passage": "p"}] * 6)
    source = open_source(files(path))
    plan = plan_chunks(source, 4)
    write_jsonl(path, [{"query": "q", "passage": "p"}] * 5)

    with pytest.raises(BatchError, match="has changed: chunk 1 is incomplete"):
        ChunkReader(source).read(plan.chunks[1])


def test_unsupported_inputs_are_errors(tmp_path: Path, beir: Path) -> None:
    run = tmp_path / "run"
    run.touch()
    jsonl = write_jsonl(tmp_path / "in.jsonl", [])
    for asked, message in [
        (files(tmp_path / "nowhere.jsonl"), "does not exist"),
        (files(jsonl, run), "is not a BEIR folder, so --candidates"),
        (files(beir), "--candidates must name a TREC run"),
        (files(beir, tmp_path / "nowhere"), "does not exist"),
        (files(tmp_path, run), "has no corpus.jsonl and no queries.jsonl"),
    ]:
        with pytest.raises(BatchError, match=message):
            open_source(asked)
