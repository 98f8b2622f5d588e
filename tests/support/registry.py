"""A registry in memory that breaks as a test tells it, and what pulls from it in tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from supervisor.image import oci
from supervisor.image.reference import Remote
from tests.support.images import Built, sha256
from tests.support.web import Answering, Asked, Reply

__all__ = ["sha256"]

OCI = oci.OCI_MANIFEST

Fault = Callable[[Asked], Reply | None]


def faulty(faults: list[Fault], answer: Answering) -> Answering:
    """The first fault that answers, else `answer`; the list may be changed meanwhile."""

    def first(asked: Asked) -> Reply:
        for fault in faults:
            reply = fault(asked)
            if reply is not None:
                return reply
        return answer(asked)

    return first


@dataclass
class Memory:
    """One repository, `a/b`.  Each fault may answer instead; None leaves it to the next."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    ranges: bool = True
    name: str = "a/b"

    def add(self, data: bytes) -> str:
        self.blobs[sha256(data)] = data
        return sha256(data)

    def tag(self, name: str, document: object) -> str:
        data = json.dumps(document).encode()
        self.manifests[name] = self.manifests[sha256(data)] = data
        return sha256(data)

    def push(self, tag: str, *images: Built) -> str:
        """One image, or an index of several; its digest."""
        for one in images:
            self.blobs |= one.blobs
            self.manifests[one.digest] = one.raw_manifest
        if len(images) == 1:
            return self.tag(tag, images[0].manifest)
        listed = [one.described(platform=True) for one in images]
        return self.tag(tag, {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": listed})

    def __call__(self, asked: Asked) -> Reply:
        return faulty(self.faults, self.plain)(asked)

    def plain(self, asked: Asked) -> Reply:
        match = re.fullmatch(rf"/v2/{self.name}/(manifests|blobs)/(\S+)", asked.path)
        kind, key = match.groups() if match else ("", "")
        if kind == "manifests" and key in self.manifests:
            data = self.manifests[key]
            headers = {
                "Content-Type": json.loads(data).get("mediaType", OCI),
                "Docker-Content-Digest": sha256(data),
            }
            return Reply(200, headers, data)
        if kind == "blobs" and key in self.blobs:
            return self.blob(asked, self.blobs[key])
        error = {"errors": [{"code": "UNKNOWN", "message": f"{asked.path} unknown"}]}
        return Reply(404, {}, json.dumps(error).encode())

    def blob(self, asked: Asked, data: bytes) -> Reply:
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
        if not wanted or not self.ranges:
            return Reply(200, {}, data)
        start = int(wanted[1])
        if start >= len(data):
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Reply(206, {"Content-Range": span}, data[start:])


@dataclass
class Kept:
    """A sink in memory; `data` may hold what came before."""

    data: bytearray = field(default_factory=bytearray)
    finished: bool = False
    resets: int = 0

    @property
    def offset(self) -> int:
        return len(self.data)

    @property
    def found(self) -> str:
        return sha256(bytes(self.data))

    def write(self, data: bytes) -> None:
        self.data += data

    def reset(self) -> None:
        self.data.clear()
        self.resets += 1

    def finish(self) -> None:
        self.finished = True


def once(reply: Reply, path: str = "", times: int = 1) -> Fault:
    """Answers so the first time(s) that a path with this in it is asked for."""
    left = [times]

    def fault(asked: Asked) -> Reply | None:
        if path not in asked.path or not left[0]:
            return None
        left[0] -= 1
        return reply

    return fault


def always(reply: Reply, path: str = "") -> Fault:
    return once(reply, path, times=-1)


def at(host: str, tag: str | None = "1", digest: str | None = None, name: str = "a/b") -> Remote:
    return Remote(host, name, tag, digest)
