"""The deployments reach a server with typed, described parameters."""

from typing import Any

import prefect

from flows.serve import deployments


def test_every_flow_is_deployed_with_described_parameters(children: Any) -> None:
    found = {}
    for deployment in deployments():
        identity = deployment.apply()
        with prefect.get_client(sync_client=True) as client:
            found[deployment.flow_name] = client.read_deployment(identity)
    assert set(found) == {"pipeline", "prepare", "pretrain", "evaluate", "ablate", "scale"}
    for name, deployment in found.items():
        assert deployment.entrypoint.endswith(f"flows/{name}.py:{name}")
        assert deployment.description
        for parameter in deployment.parameter_openapi_schema["properties"].values():
            assert parameter["description"]
    evaluate = found["evaluate"].parameter_openapi_schema
    assert evaluate["required"] == ["checkpoint"]
    assert evaluate["properties"]["checkpoint"]["format"] == "path"
