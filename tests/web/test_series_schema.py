"""What the schema says about tilt series, against a server that has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from match_session import add_search
from schemathesis import GenerationMode
from series_session import NAME, make

import weft
from weft.web.app import Application
from weft.web.security import Access

TOKEN = "owner-token-of-the-tests"
AS_OWNER = {"Authorization": f"Bearer {TOKEN}", "Host": "127.0.0.1:8765"}
EXAMPLES = 20  # of each operation
LONGEST = 255  # a longer name is wrong, and stays


def labels() -> Iterator[tuple[str, GenerationMode]]:
    """Operations on tilt series, with what can be sent to them: good and bad."""
    for path, methods in Application(cast(Any, None), Access(TOKEN)).api.openapi()["paths"].items():
        for method, operation in methods.items():
            if not path.startswith(("/api/series", "/api/handedness")):
                continue
            yield f"{method.upper()} {path}", GenerationMode.POSITIVE
            if "parameters" in operation or "requestBody" in operation:
                yield f"{method.upper()} {path}", GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def schema(idle_manager: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The schema of a server over a session with one series and a search."""
    root = tmp_path_factory.mktemp("series-schema") / "session"
    add_search(make(root), hand=True)
    application = Application(idle_manager(weft.open(root)), Access(TOKEN))
    described = dict(application.api.openapi())
    del described["security"]
    found = schemathesis.openapi.from_dict(described)
    found.app = application
    return found


@pytest.mark.parametrize(("label", "mode"), sorted(labels()))
def test_the_server_keeps_to_its_schema(schema: Any, label: str, mode: GenerationMode) -> None:
    operation = schema.find_operation_by_label(label)

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
        # mostly a series that is there: otherwise most of the code would never be reached
        identity = (case.path_parameters or {}).get("id")
        if isinstance(identity, str) and 0 < len(identity) <= LONGEST and len(identity) % 4:
            case.path_parameters["id"] = NAME
            job = case.path_parameters.get("job")
            if isinstance(job, str) and 0 < len(job) <= LONGEST:
                case.path_parameters["job"] = f"{NAME}_ribosome"
        case.call_and_validate(headers=AS_OWNER)

    check()
