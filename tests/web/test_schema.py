"""The OpenAPI schema against the server: no crash, and no answer that the schema does not know."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

import weft
from weft.web.app import Application
from weft.web.security import Access

TOKEN = "owner-token-of-the-tests"
AS_OWNER = {"Authorization": f"Bearer {TOKEN}", "Host": "127.0.0.1:8765"}
EXAMPLES = 25  # of each operation
LONGEST_NAME = 255  # of an item: as the schema has it
#: What the schema has no words for: an order of two numbers, the size of a micrograph, keys of settings.
UNSAID = {"PUT /api/selection", "PUT /api/items/{id}/picks", "POST /api/settings"}


def labels() -> Iterator[tuple[str, GenerationMode]]:
    """Every operation with what can be sent to it: good and bad, where it takes anything at all."""
    for path, methods in Application(cast(Any, None), Access(TOKEN)).api.openapi()["paths"].items():
        for method, operation in methods.items():
            if path == "/api/events":
                continue  # a stream without end has tests of its own
            yield f"{method.upper()} {path}", GenerationMode.POSITIVE
            if "parameters" in operation or "requestBody" in operation:
                yield f"{method.upper()} {path}", GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def schema(
    processed: Path, idle_manager: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The schema of a server over a session that may be changed."""
    root = tmp_path_factory.mktemp("schema") / "session"
    shutil.copytree(processed, root)
    application = Application(idle_manager(weft.open(root)), Access(TOKEN))
    described = dict(application.api.openapi())
    # the token is given below, and tried without in test_web_security.py
    del described["security"]
    found = schemathesis.openapi.from_dict(described)
    found.app = application
    return found


def _checked(operation: Any, mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        # half of the time an item that is there: otherwise most of the code would never be reached
        identity = (case.path_parameters or {}).get("id")
        # (but for one that is itself what the case tries: too long a name)
        if isinstance(identity, str) and len(identity) % 2 and len(identity) <= LONGEST_NAME:
            case.path_parameters["id"] = "movie_000"
        unsaid = [positive_data_acceptance] if operation.label in UNSAID else None
        case.call_and_validate(headers=AS_OWNER, excluded_checks=unsaid)

    check()


@pytest.mark.parametrize(("label", "mode"), sorted(labels()))
def test_the_server_keeps_to_its_schema(schema: Any, label: str, mode: GenerationMode) -> None:
    operation = schema.find_operation_by_label(label)
    assert operation is not None
    _checked(operation, mode)


def test_every_address_of_the_api_is_described(schema: Any) -> None:
    for operation in schema.get_all_operations():
        described = operation.ok().definition.raw
        assert described.get("summary")
        assert described.get("description"), operation.ok().label
        assert {"400", "401", "422", "503"} <= set(described["responses"])
