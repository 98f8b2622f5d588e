"""What [images] says of registries: names of hosts, mirrors, certificates.

May import: `image.hosts`, `front.kinds`, `front.problems`, `front.tables`.  Which mirrors may be
spoken to in plain HTTP depends on `insecure`, so they are checked when all of it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisor.front.kinds import Context, must, string
from supervisor.front.problems import Problems
from supervisor.image import hosts
from supervisor.image.hosts import RegistrySettings

Key = tuple[str, ...]


def host(value: Any, context: Context) -> str:
    """A host as references name it: HOST or HOST:PORT."""
    text = string(value, context)
    why = _why_no_host(text)
    if why:
        raise must('a host like "10.0.0.9:5000"', value, why)
    return text.lower()


def _why_no_host(text: str) -> str:
    try:
        url = hosts.split(f"//{text}")
    except ValueError as error:
        return f"it {error}"
    return "" if url.netloc == text else "it has more in it than a host and a port"


def registry_settings(values: Mapping[Key, Any], problems: Problems) -> RegistrySettings:
    """The part of [images] that concerns registries; `values` have been parsed."""
    ca = values.get(("ca",))
    insecure = values.get(("insecure",), ())
    mirrors = {key[1]: texts for key, texts in values.items() if key[:1] == ("mirrors",)}
    settings = RegistrySettings(mirrors, insecure, Path(ca) if ca is not None else None)
    for registry, texts in mirrors.items():
        place = ("images", "mirrors", registry)
        if why := _why_no_registry(registry):
            problems.add(place, why)
        for index, text in enumerate(texts):
            try:
                hosts.mirror(text, settings)
            except ValueError as error:
                problems.add((*place, index), str(error))
    return settings


def _why_no_registry(text: str) -> str:
    if text in ("index.docker.io", "registry-1.docker.io", "hub.docker.com"):
        return 'is "docker.io" in references'
    why = _why_no_host(text)
    if why:
        return f"is no registry: {why}"
    return "" if text == text.lower() else "is written in lower case in references"
