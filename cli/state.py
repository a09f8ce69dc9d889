"""What a job must remember to be gone on with after a kill: one small database beside the journal of the answers."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from ..pipeline.errors import ConfigError
from .outcome import Spent
from .spool import DiskFull, StateDamaged

STATE_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ids (digest BLOB PRIMARY KEY, row INTEGER NOT NULL, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
  row INTEGER PRIMARY KEY, calls INTEGER NOT NULL, cost INTEGER NOT NULL, ambiguous INTEGER NOT NULL, most INTEGER
);
"""


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise DiskFull(
                f"the job's state can't be written: {error}. Everything answered so far is kept and nothing is paid twice; "
                "make room and run the same command again"
            ) from error
        raise
    except sqlite3.DatabaseError as error:
        raise StateDamaged(
            f"the job's state is damaged ({error}): delete the .state folder beside the answers file and run again; answers "
            "that the engine still has are not paid again"
        ) from error


class JobDatabase:
    """`job.db`: which custom_ids were seen, and named facts (JSON). Survives a kill at any point; a power cut up to the last sync."""

    def __init__(self, path: Path) -> None:
        with _database_errors():
            self._db = sqlite3.connect(path, isolation_level=None)
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-32768", "wal_autocheckpoint=4000"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Raises `DiskFull`."""
        with _database_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def claim(self, digest: bytes, row: int, content: bytes) -> tuple[int, bytes]:
        """Remembers who has this custom_id; (row, content) of the first who had it, perhaps the caller."""
        with _database_errors():
            taken = self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", (digest, row, content))
            if taken.rowcount:
                return row, content
            first = self._db.execute("SELECT row, content FROM ids WHERE digest = ?", (digest,)).fetchone()
        return int(first[0]), bytes(first[1])

    def reclaim(self, digest: bytes, row: int, content: bytes) -> None:
        """Another row takes the place of the first."""
        with _database_errors():
            self._db.execute("UPDATE ids SET row = ?, content = ? WHERE digest = ?", (row, content, digest))

    def release(self, digest: bytes) -> None:
        """Its row was not sent after all."""
        with _database_errors():
            self._db.execute("DELETE FROM ids WHERE digest = ?", (digest,))

    def claimed(self) -> int:
        """How many custom_ids are held."""
        return int(self._db.execute("SELECT count(*) FROM ids").fetchone()[0])

    def content(self, digest: bytes) -> bytes | None:
        """What the first row with this custom_id asked for."""
        found = self._db.execute("SELECT content FROM ids WHERE digest = ?", (digest,)).fetchone()
        return None if found is None else bytes(found[0])

    def holder(self, digest: bytes) -> int | None:
        """The row that has this custom_id."""
        found = self._db.execute("SELECT row FROM ids WHERE digest = ?", (digest,)).fetchone()
        return None if found is None else int(found[0])

    def put(self, name: str, value: Any) -> None:
        with _database_errors():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)))

    def get(self, name: str, default: Any = None) -> Any:
        with _database_errors():
            found = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if found is None else orjson.loads(found[0])

    def put_spent(self, row: int, spent: Spent) -> None:
        with _database_errors():
            values = (row, spent.calls, spent.cost_pico, spent.ambiguous_cap_pico)
            self._db.execute(
                """INSERT INTO spent (row, calls, cost, ambiguous) VALUES (?, ?, ?, ?) ON CONFLICT (row) DO UPDATE
                SET calls = excluded.calls, cost = excluded.cost, ambiguous = excluded.ambiguous""",
                values,
            )

    def put_most(self, row: int, pico: int) -> None:
        """What a row of `put_spent` may cost in all, as it is asked for now."""
        with _database_errors():
            self._db.execute("UPDATE spent SET most = ? WHERE row = ?", (pico, row))

    def load_spent(self) -> dict[int, tuple[Spent, int | None]]:
        """By row, for rows that were asked more than once: what they took, and what they may cost in all where that was said."""
        with _database_errors():
            found = self._db.execute("SELECT row, most, calls, cost, ambiguous FROM spent")
            return {row: (Spent(*values), most) for row, most, *values in found}

    def forget_spent_of(self, row: int) -> None:
        with _database_errors():
            self._db.execute("DELETE FROM spent WHERE row = ?", (row,))

    def forget_spent(self) -> None:
        with _database_errors():
            self._db.execute("DELETE FROM spent")

    def clear(self) -> None:
        """Forgets the custom_ids; the facts stay."""
        with _database_errors():
            self._db.execute("DELETE FROM ids")
            self._db.execute("VACUUM")

    def close(self) -> None:
        self._db.close()


class StateFolder:
    """`answers.jsonl.state/`, held by one process at a time."""

    def __init__(self, answers: Path) -> None:
        self.path = answers.with_name(answers.name + ".state")
        self.journal = self.path / "spool.jsonl"
        self.index = self.path / "rows.idx"
        self.database = self.path / "job.db"
        self.rewrite = self.path / "rewrite.jsonl"
        """The answers file in the making, where it replaces an earlier one."""
        self._lock: int | None = None

    def take(self) -> None:
        """Raises `ConfigError` where another process works on it, or it can't be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"{self.path} can't be written: {error.strerror}; choose another place with -o") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError(
                f"another `inference-engine run` is writing {self.path.name.removesuffix('.state')}: wait for it or stop it"
            ) from None
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def drop_bulk(self) -> None:
        """Removes what a finished job needs no more."""
        self.drop(self.journal, self.index, self.rewrite)

    def drop(self, *files: Path) -> None:
        for file in files:
            file.unlink(missing_ok=True)


def as_offsets(stored: Any) -> dict[int, int]:
    """Offsets by partition, as JSON keeps them."""
    return {int(p): int(o) for p, o in (stored or {}).items()}


def check_same(facts: Sequence[tuple[str, Any, Any, str]]) -> None:
    """(name, stored, now, what to do) of facts that must not change between runs of one job. Raises `ConfigError`."""
    for name, stored, now, advice in facts:
        if stored != now:
            raise ConfigError(f"{name} changed since this job began (then {stored!r}, now {now!r}): {advice}")
