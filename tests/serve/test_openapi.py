"""Random requests after the server's own description: none fails it, and every answer is as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from server import Served, served
from tiny_sleeper import tiny_sleeper

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import checks  # noqa: E402
from schemathesis.specs.openapi import checks as openapi_checks  # noqa: E402

KNOWN = {"model": "tiny-depo", "prompt": "k=1 3", "input": "k=1 3", "question": "k=1 3", "text": "3 4", "name": "m"}
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    sleeper = tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")
    limits: dict[str, Any] = {"answer_tokens": 40, "prompt_tokens": 300, "cached_bytes": 10**6, "stored_bytes": 10**7}
    with served(sleeper, tmp_path_factory.mktemp("store"), **limits, memories=50, readings=50) as server:
        with server.http() as http:
            id = http.post("/v1/responses", json={"model": "tiny-depo", "input": "k=1 3"}).json()["id"]
            http.post("/v1/memories", json={"name": "m", "source": id}).raise_for_status()
        yield server


def check(server: Served, examples: int) -> None:
    """So many requests to each operation."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        )
        @given(case=operation.as_strategy(), known=st.integers(0, 2**9), data=st.data())
        def ask(case: Any, known: int, data: Any) -> None:
            if isinstance(case.body, dict):  # such that some get further than to a refusal of their names
                likely = {key: value for key, value in KNOWN.items() if key in case.body and known & 1}
                case.body = {**case.body, **likely}
            if known & 2 and case.path_parameters:
                case.path_parameters = {key: "m" if key == "name" else "tiny-depo@m" for key in case.path_parameters}
            case.call_and_validate(checks=CHECKS, timeout=60)

        ask()


def test_a_few_of_each(server: Served) -> None:
    check(server, 10)
    assert server.service is not None
    assert server.service.engine.alive


@pytest.mark.slow
def test_many_of_each(server: Served) -> None:
    check(server, 700)
