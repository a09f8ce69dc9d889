"""A run that waits for provider batches says how far they are."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from inference_engine.cli.batches_shown import WithBatches, said
from inference_engine.cli.progress import Snapshot, plain_line


def batch(rows: int, done: int, provider: str = "openai") -> dict[str, Any]:
    return {"rows": rows, "done": done, "provider": provider}


def snapshot() -> Snapshot:
    return Snapshot("j", 10, 0, 0, 0, 0, 10, {}, 0, 0, 0, 1.0)


def test_the_batches_of_all_workers_are_added_up_and_nothing_is_said_where_there_are_none() -> None:
    workers: list[dict[str, Any]] = [
        {"batches": [batch(1000, 10), batch(5, 5)], "waiting_for_a_batch": 3},
        {"batches": [batch(1, 0, "anthropic")]},
        {},
    ]
    assert said(workers) == "3 batches at anthropic, openai: 15 of 1,006 rows done; 3 wait for a batch to be closed"
    assert said([{"batches": [batch(1, 0)]}]) == "1 batch at openai: 0 of 1 rows done"
    assert said([{"batches": [], "waiting_for_a_batch": 0}]) == ""


def test_the_line_of_a_run_names_them_until_it_ends() -> None:
    shown: list[Snapshot] = []
    looked = threading.Event()

    class Kept:
        def update(self, snapshot: Snapshot, *, last: bool = False) -> None:
            shown.append(snapshot)

        def note(self, text: str) -> None:
            raise AssertionError(text)

        def close(self) -> None:
            """Nothing is open."""

    def look() -> Iterable[Mapping[str, Any]]:
        if looked.is_set():
            second.set()
        looked.set()
        return [{"batches": [batch(9, 4)]}]

    second = threading.Event()
    progress = WithBatches(Kept(), look, every_s=0.001).start()
    assert second.wait(30)
    progress.update(snapshot())
    progress.update(snapshot(), last=True)
    progress.close()
    assert [s.batches for s in shown] == ["1 batch at openai: 4 of 9 rows done", ""]
    assert plain_line(shown[0]).endswith("| 1 batch at openai: 4 of 9 rows done")
