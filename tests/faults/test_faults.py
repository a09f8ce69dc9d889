"""A handful of the matrix, the quick ones: the others run by `make faults`."""

from pathlib import Path

import pytest

from .__main__ import chosen
from .matrix import MATRIX
from .play import Fault, run

BY_NAME = {fault.name: fault for fault in MATRIX}
QUICK = (
    "crash at after_join",
    "crash at after_send",
    "random kills",
    "random kills, no second payment",
    "batch: crash at after_submit",
    "batch: rows that come to nothing",
    "zombie",
    "provider: billed, then dropped",
    "poison records",
    "data folder deleted",
    "disk full, of a worker",
    "changelog and data folder gone",
)


@pytest.mark.parametrize("fault", [BY_NAME[name] for name in QUICK], ids=lambda fault: fault.name)
def test_nothing_is_lost_and_every_cent_is_explained(fault: Fault, kafka: str, tmp_path: Path) -> None:
    outcome = run(fault, seed=1, brokers=kafka, broker=None, kept=tmp_path)
    assert outcome.violations == ()
    assert outcome.lost == 0
    assert outcome.unexplained_pico == 0
    assert outcome.requests > 0


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(MATRIX)


def test_faults_are_left_out_by_name_or_by_words() -> None:
    names = {fault.name for fault in chosen([], ["clickhouse-away-for-10-minutes", "random kills"])}
    assert BY_NAME.keys() - names == {"ClickHouse away for 10 minutes", "random kills"}
    assert {fault.name for fault in chosen(["batch"], ["crash"])} == {n for n in BY_NAME if "batch" in n and "crash" not in n}
