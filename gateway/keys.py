"""Who may ask: keys of the gateway, and the tenant that each stands for."""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pipeline.errors import ConfigError

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Keys:
    """Tenants by the SHA-256 of their keys; the keys themselves are not kept."""

    tenants: Mapping[str, str] = field(repr=False)

    def tenant_of(self, key: str) -> str | None:
        return self.tenants.get(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest())


@dataclass(frozen=True, slots=True)
class Access:
    """Without a file of keys only callers on this machine are let in, as the default tenant."""

    keys: Keys | None
    default_tenant: str

    def tenant(self, authorization: str | None, client_host: str | None) -> str | None:
        """None: not let in."""
        if self.keys is None:
            return self.default_tenant if client_host in _LOOPBACK else None
        scheme, _, key = (authorization or "").partition(" ")
        return self.keys.tenant_of(key.strip()) if scheme.lower() == "bearer" else None


def load_keys(path: Path) -> Keys:
    """Reads a TOML file of tables `[[keys]]`, each with `tenant` and either `key` or `sha256` (hex, of the key). Raises `ConfigError`."""
    try:
        parsed = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"API_KEYS_FILE {path} can't be read ({error}); the gateway was not started") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"API_KEYS_FILE {path} is not valid TOML: {error}; the gateway was not started") from None
    entries = parsed.get("keys")
    if set(parsed) != {"keys"} or not isinstance(entries, list) or not entries:
        raise ConfigError(f'API_KEYS_FILE {path} must hold tables [[keys]] with tenant = "..." and sha256 = "..." or key = "..."')
    tenants: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        digest, tenant = _entry(entry, f"API_KEYS_FILE {path}, key {number}")
        if digest in tenants:
            raise ConfigError(f"API_KEYS_FILE {path}, key {number}: this key stands there twice")
        tenants[digest] = tenant
    return Keys(tenants)


def _entry(entry: Any, where: str) -> tuple[str, str]:
    """Never quotes a key in a message."""
    if not isinstance(entry, dict) or not set(entry) <= {"tenant", "key", "sha256", "name"} or ("key" in entry) == ("sha256" in entry):
        raise ConfigError(f"{where}: give tenant, and either key or sha256 (name is for you)")
    tenant, key, digest = entry.get("tenant"), entry.get("key"), entry.get("sha256")
    if not isinstance(tenant, str) or not 0 < len(tenant) <= 256 or "\0" in tenant:
        raise ConfigError(f"{where}: tenant must be a text of 1 to 256 characters")
    if digest is not None:
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise ConfigError(f"{where}: sha256 must be 64 hexadecimal digits")
        return digest.lower(), tenant
    if not isinstance(key, str) or len(key) < 16:
        raise ConfigError(f"{where}: a key has at least 16 characters")
    return hashlib.sha256(key.encode()).hexdigest(), tenant
