"""Reading the user's file lazily."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.cli import input_file
from inference_engine.cli.input_file import measure, open_input, read_line_at, read_lines
from inference_engine.pipeline.errors import ConfigError

pieces = st.lists(st.sampled_from([b"a", b"bcd", b"\n", b"\n\n", b" ", b"\r\n", b"\xef\xbb\xbf", b"x" * 70]), max_size=25).map(b"".join)


@given(pieces, st.integers(0, 30))
def test_reading_from_any_row_on_gives_the_same_rows_as_reading_all(data: bytes, start: int) -> None:
    rows = list(read_lines(io.BytesIO(data)))
    assert [line.row for line in rows] == list(range(len(rows)))
    assert all(line.data for line in rows)
    for line in rows[start : start + 1]:
        assert list(read_lines(io.BytesIO(data), row=line.row, offset=line.offset)) == rows[line.row :]


@given(pieces)
def test_counting_and_reading_agree_also_with_lines_that_are_too_long(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(input_file, "MAX_LINE_BYTES", 16)
            with open_input(path) as file:
                rows = list(read_lines(file))
                assert measure(path).rows == len(rows)
                for line in rows:
                    again = read_line_at(file.fileno(), line.row, line.offset, line.length)
                    assert again.oversized == line.oversized or line.length == 16
                    assert line.oversized or again.data == line.data or line.length == 16


def test_the_digest_tells_files_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n2\n")
    (tmp_path / "b").write_bytes(b"1\n3\n")
    assert measure(tmp_path / "a").digest != measure(tmp_path / "b").digest


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_what_can_not_be_read_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"give a JSONL file"):
        open_input(tmp_path / name)
