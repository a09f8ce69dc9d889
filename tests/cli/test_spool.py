"""Answers on disk: in order, whole, and recoverable from any cut."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.cli.spool import AnswersFile, Entry, Journal, Kind, RowIndex, StateDamaged


def put(journal: Journal, index: RowIndex, row: int, line: bytes, ok: bool = True) -> None:
    for number, entry in journal.append([(row, line, ok)]):
        index.put(number, entry)


@given(st.permutations(range(30)), st.sets(st.integers(0, 29)))
def test_the_answers_file_is_the_longest_prefix_in_input_order_at_every_moment(order: list[int], same: set[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        journal, index, out = Journal(path / "j"), RowIndex(path / "i"), AnswersFile(path / "o", 0, 0)
        same.discard(0)
        for row in same:
            index.put(row, Entry(Kind.SAME_AS, 0))
        done = set(same)
        for row in (r for r in order if r not in same):
            put(journal, index, row, b"line %d" % row)
            done.add(row)
            while out.advance(index, journal, 30):
                pass
            ready = next((n for n in range(31) if n not in done or (n in same and 0 not in done)), 30)
            expected = [b"line %d" % (0 if n in same else n) for n in range(min(ready, 30))]
            assert (path / "o").read_bytes() == b"".join(line + b"\n" for line in expected)
        for part in (journal, index, out):
            part.close()


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b), min_size=1, max_size=12), st.integers(0, 400))
def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(lines: list[bytes], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        journal = Journal(path)
        journal.append([(n, line, True) for n, line in enumerate(lines)])
        journal.close()
        os.truncate(path, min(cut, path.stat().st_size))
        again = Journal(path)
        kept = [line for _, _, line in again.scan(0)]
        assert kept == lines[: len(kept)]
        entries = again.append([(99, b"more", False)])
        assert again.read(entries[0][1]) == b"more"
        assert [row for row, _, _ in again.scan(0)] == [*range(len(kept)), 99]
        again.close()


def test_a_line_that_is_not_what_was_written_is_never_given_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    [(_, entry)] = journal.append([(0, b"precious", True)])
    with (tmp_path / "j").open("r+b") as file:
        file.seek(3)
        file.write(b"X")
    with pytest.raises(StateDamaged, match=r"delete the \.state folder"):
        journal.read(entry)


def test_the_answers_file_begins_again_where_somebody_shortened_it(tmp_path: Path) -> None:
    journal, index = Journal(tmp_path / "j"), RowIndex(tmp_path / "i")
    for row in range(3):
        put(journal, index, row, b"line %d" % row)
    (tmp_path / "o").write_bytes(b"line 0\n")
    out = AnswersFile(tmp_path / "o", 2, 14)
    while out.advance(index, journal, 3):
        pass
    assert (tmp_path / "o").read_bytes() == b"line 0\nline 1\nline 2\n"


def test_rows_are_counted_by_kind_and_repeats_as_what_they_repeat(tmp_path: Path) -> None:
    index = RowIndex(tmp_path / "i")
    for row, entry in enumerate([Entry(Kind.ANSWERED), Entry(Kind.FAILED), Entry(Kind.SAME_AS, 1), Entry(Kind.HELD), Entry(Kind.ASKED)]):
        index.put(row, entry)
    counts = index.tally()
    assert (counts[Kind.ANSWERED], counts[Kind.FAILED], counts[Kind.HELD], counts[Kind.ASKED]) == (1, 2, 1, 1)
