"""The provider as a process of its own: its fsynced bill is the oracle that the engine's accounts are held against."""

import hashlib
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .waiting import until


@dataclass(frozen=True, slots=True)
class BillLine:
    """One call that the provider charges for."""

    prompt: str
    """Hex digest of model and last user message, see `prompt_digest`."""
    model: str
    request_id: str
    pico: int


def prompt_digest(model: str, text: str) -> str:
    """As the provider writes it on its bill."""
    return hashlib.blake2b(f"{model}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Provider:
    """`with Provider(folder) as provider:` serves OpenAI's and Anthropic's protocols on loopback."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.bill_file = folder / "bill.jsonl"
        self.log_file = folder / "provider.log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> "Provider":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once it listens; a provider that was stopped comes back at the same address."""
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "inference_engine.connectors.simulated_server", "--port", port, "--bill", str(self.bill_file)]
        begin = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen([*command, *self._arguments], stdout=log, stderr=log, env=clean_environment())
        self.url = until(lambda: self._announced(begin), "the provider listens", within_s=30)

    def _announced(self, begin: int) -> str | None:
        assert self._process is not None
        assert self._process.poll() is None, self.log_file.read_text()
        said = self.log_file.read_bytes()[begin:].decode()
        return said.split("provider at ")[1].split(" ")[0] if "(OpenAI:" in said else None

    def stop(self) -> None:
        """As a provider that goes away: calls under way are cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    # --- its bill ----------------------------------------------------------------------------------------------------

    def bill(self) -> list[BillLine]:
        """All that it charges, in order, from the disk."""
        if not self.bill_file.exists():
            return []
        lines = self.bill_file.read_bytes().split(b"\n")[:-1]
        return [BillLine(d["prompt"], d["model"], d["request_id"], d["pico"]) for d in map(orjson.loads, lines)]

    def billed(self, model: str, texts: Iterable[str]) -> Counter[str]:
        """How often each of these prompts was paid, by text; those that never were are left out."""
        by_digest = {prompt_digest(model, text): text for text in texts}
        return Counter(by_digest[line.prompt] for line in self.bill() if line.prompt in by_digest)

    def charged(self, model: str, texts: Iterable[str]) -> int:
        """Pico-dollars for these prompts."""
        digests = {prompt_digest(model, text) for text in texts}
        return sum(line.pico for line in self.bill() if line.prompt in digests)

    # --- its behaviour -----------------------------------------------------------------------------------------------

    def fail(self, kind: str, *, match: str = "", count: int | None = None, retry_after: float = 1.0) -> None:
        """The next `count` calls (None: all) whose last user message contains `match` fail, see connectors/simulation.py."""
        rule = {"kind": kind, "match": match, "count": count, "retry_after": retry_after}
        self._ask("/_faults", "POST", orjson.dumps(rule))

    def heal(self) -> None:
        """No more faults."""
        self._ask("/_faults", "DELETE")

    def files(self) -> list[str]:
        """Ids of the files that it keeps."""
        return [str(file["id"]) for file in self._ask("/v1/files", "GET")["data"]]

    def summary(self) -> dict[str, Any]:
        return self._ask("/_bill", "GET")

    def _ask(self, path: str, method: str, body: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            answer: dict[str, Any] = orjson.loads(response.read())
        return answer


_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")


def clean_environment(**settings: str) -> dict[str, str]:
    """What a child sees: none of the settings that happen to be in the tester's own environment."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # Where the tester imports the engine from, its children must, too: they would run another checkout's code.
    path = [settings.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
    imports = {"PYTHONPATH": os.pathsep.join(filter(None, path))} if any(path) else {}
    return {**kept, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **imports, **settings}


def words(lines: Sequence[bytes]) -> str:
    """For messages of failed assertions."""
    return b"\n".join(lines).decode(errors="replace")
