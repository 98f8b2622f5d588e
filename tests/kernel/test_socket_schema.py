"""What the OpenAPI document says, held against a real instance by schemathesis."""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from supervisor.front.verbs import place
from supervisor.front.verbs.client import Client
from tests.support import host
from tests.support.batch import Batch

pytestmark = [pytest.mark.kernel, host.outside("the routes, which are the same everywhere")]

JOBS = """
[jobs.one]
command = "sleep 1000"
restart.when = "always"
restart.attempts = "max"
restart.backoff = "1ms"
restart.max_backoff = "1ms"
[jobs.two]
command = "sleep 1000"
limits.memory = "64M"
[jobs.ended]
command = "true"
[jobs.that-nobody-names]
command = "sleep 1000"
"""

ENDS_IT = {"/v1/stop"}
"""What cannot be tried again and again."""

EXAMPLES = 15


@contextmanager
def over_tcp(path: Path) -> Iterator[str]:
    """Whoever connects to a port of the loopback speaks to the socket at `path`; the URL of it."""
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def accept() -> None:
            with suppress(OSError):  # it is closed, at the end
                while True:
                    client, _ = listener.accept()
                    try:
                        server = place.connect(path)
                    except OSError:
                        client.close()
                        raise
                    for one, other in ((client, server), (server, client)):
                        thread = threading.Thread(target=copy, args=(one, other), daemon=True)
                        thread.start()
                        threads.append(thread)
                    stack.callback(server.close)
                    stack.callback(client.close)

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        for thread in threads:
            thread.join(10)


def copy(one: socket.socket, other: socket.socket) -> None:
    """Until one side ends; then the other is told."""
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)


def operations(document: dict[str, Any]) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own dependencies' deprecations
        import schemathesis
    schema = schemathesis.openapi.from_dict(document)
    return [found.ok() for found in schema.get_all_operations()]


def check(operation: Any, url: str) -> None:
    """So many requests, good and bad ones, derandomized; most of them about jobs there are."""
    names = cycle(["one", "two", "ended", None] if "{job}" in operation.path else [None])

    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        bound(case)
        if name := next(names):
            case.path_parameters = {**(case.path_parameters or {}), "job": name}
        case.call_and_validate(
            base_url=url, timeout=60 * host.SLOWNESS, excluded_checks=excluded(operation)
        )

    ask()


def excluded(operation: Any) -> list[Any]:
    """The checks that do not hold for an operation."""
    if "x-checks-more" not in operation.definition.raw:
        return []
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    return [positive_data_acceptance]


def bound(case: Any) -> None:
    """What never ends by itself."""
    query = case.query or {}
    if "follow" in query:
        query["follow"] = "false"
    if case.operation.path.endswith("/wait"):
        query["timeout"] = "1ms"
    if case.operation.path.endswith("/stats/follow"):
        query |= {"count": "1", "interval": "0.25"}
    if case.operation.path.endswith("/stats"):
        query["over"] = "0"
    if case.operation.path.endswith("/stats/follow"):
        query["count"] = "1"
    case.query = query


def test_every_answer_is_as_the_document_says(batch: Batch) -> None:
    with batch.start(JOBS) as running:
        running.wait_started("one", "two", "ended")
        path = batch.where.runtime / batch.name / "socket"
        document = Client(path).get("openapi.json")
        document["paths"] = {
            name: item for name, item in document["paths"].items() if name not in ENDS_IT
        }
        tried = []
        with over_tcp(path) as url:
            for operation in operations(document):
                if "101" in operation.definition.raw["responses"]:
                    continue
                check(operation, url)
                tried.append(operation.label)
        assert {"GET /v1/", "GET /v1/jobs/{job}", "POST /v1/jobs/{job}/kill"} <= set(tried)
        assert Client(path).get("jobs", "two")["status"]["name"] == "two"
    bugs = [entry for entry in batch.entries("warning") if "a bug" in entry["text"]]
    assert bugs == []
