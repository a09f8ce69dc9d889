"""Embeddings of a table's prompts for an evaluation: made once, kept in the data folder, with progress on standard error."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..agents.embedders import configured_embedder
from ..agents.settings import Settings
from ..connectors.data_folder import data_folder
from ..pipeline.ports import Vectors
from .command_settings import load_settings

_BATCH = 256
_ENDS = 250
"""Characters of a prompt that are embedded at either end: as good for routing as 256 tokens from its beginning (APGR 1.18 and 1.20 on nine
models, the same savings), for half of the time.
"""
_KEPT = 8
"""Tables whose embeddings stay on disk; a prompt takes 1.5 kB."""
_SAY_EVERY = 5.0


def embeddings_of(prompts: Sequence[str], say: Callable[[str], None]) -> Vectors | None:
    """Shape (prompts, dimension), by the embedder that the engine's settings name; None where none is installed, which `say` hears too.

    Raises `ConfigError`, and `Unavailable` where an endpoint can't be asked.
    """
    settings = load_settings()
    unique = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))
    digest = hashlib.sha256()
    for prompt in unique:
        digest.update(f"{len(prompt)} {prompt}".encode("utf-8", "surrogatepass"))
    path = data_folder().root / "evaluations" / f"{_name(settings)}-ends-{digest.hexdigest()[:32]}.npy"
    made = _kept(path, len(unique))
    if made is None:
        say("loading the embedder")
        found = configured_embedder(settings)
        if found.embedder is None:
            say(f"{found.reason}. Routing is measured on prompt features alone")
            return None
        made = _embed([_ends(prompt) for prompt in unique], found.embedder.embed, say)
        _keep(path, made, say)
    row = {prompt: i for i, prompt in enumerate(unique)}
    return made[[row[prompt] for prompt in prompts]]


def _name(settings: Settings) -> str:
    """Of all that the vectors depend on beside the prompts."""
    by = (settings.embedding_base_url, settings.embedding_model, settings.embedding_max_tokens, settings.embedding_backend)
    return hashlib.sha256(repr((*by, settings.caching.embedding_dimension)).encode()).hexdigest()[:12]


def _ends(prompt: str) -> str:
    return prompt if len(prompt) <= 2 * _ENDS else f"{prompt[:_ENDS]} {prompt[-_ENDS:]}"


def _embed(prompts: Sequence[str], embed: Callable[[Sequence[str]], Vectors], say: Callable[[str], None]) -> Vectors:
    parts: list[Vectors] = []
    begun = said = time.monotonic()
    # Longest first: what is left always takes less time than what has been seen.
    order = list(range(len(prompts)))[::-1]
    for start in range(0, len(order), _BATCH):
        parts.append(embed([prompts[i] for i in order[start : start + _BATCH]]))
        now = time.monotonic()
        if now - said >= _SAY_EVERY:
            done = min(len(order), start + _BATCH)
            say(f"embedding: {done:,} of {len(order):,} prompts, {done / (now - begun):.0f}/s")
            said = now
    made = np.concatenate(parts)
    return made[np.argsort(order)]


def _kept(path: Path, rows: int) -> Vectors | None:
    try:
        made: Vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return made if made.ndim == 2 and len(made) == rows else None


def _keep(path: Path, made: Vectors, say: Callable[[str], None]) -> None:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, made)
        part.replace(path)
        for old in sorted(path.parent.glob("*.npy"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            old.unlink()
    except OSError as error:
        say(f"the embeddings could not be kept for the next time: {error}")
