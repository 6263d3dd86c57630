"""What the OpenAPI document says is what the server does: requests made up by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from kandiga_run.tokenizer.prompts import Prompts
from server.scripted import ScriptedServer, make_prompts

KEY = "open sesame"
#: for each operation and each way to make requests up
NUM_EXAMPLES = 8

# What a schema cannot say makes a body that fits it wrong all the same: the name of the model, a
# tool that must be called but is not among the tools, a schema llguidance does not know, a prompt
# longer than the context. Such bodies are refused, so acceptance of all that fits is not asked.
# Neither is ignored_auth: it takes one of two headers away and finds that the other one suffices;
# test_access.py tries keys.
_CHECKS = (
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.unsupported_method,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    prompts: Prompts = make_prompts(tmp_path_factory.mktemp("scripted"))
    with ScriptedServer(prompts, {}, api_key=KEY, aliases=("*",), context_tokens=256) as running:
        yield running


def operations(server: ScriptedServer) -> Iterator[schemathesis.APIOperation]:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for found in document.get_all_operations():
        yield found.ok()


# In a loop, not by schemathesis's own pytest plugin, which knows no pytest from 9.2 on.
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_does_what_the_document_says(
    server: ScriptedServer, mode: GenerationMode
) -> None:
    labels = []
    for operation in operations(server):
        labels.append(operation.label)

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(
                headers={"authorization": f"Bearer {KEY}"}, checks=list(_CHECKS), timeout=30
            )

        try:
            check()
        except hypothesis.errors.Unsatisfiable:
            # Nothing about a GET without parameters can be wrong.
            assert mode is GenerationMode.NEGATIVE, operation.label
    assert len(labels) == 14


def test_the_document_is_whole(server: ScriptedServer) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
    posts = {path for path, operations in document["paths"].items() if "post" in operations}
    assert posts == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
    }
    for path in posts:
        operation = document["paths"][path]["post"]
        assert {"200", "400", "401", "413"} <= set(operation["responses"])
        assert operation["security"]
        assert operation["description"]
    assert "422" not in str(sorted(document["paths"]["/v1/responses"]["post"]["responses"]))
