"""deploy/kubernetes/ray: the example fits the schemas, and its parts one another and the server."""

import re
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from server import __version__
from server.__main__ import parse
from server.process.installation import PROJECT

FOLDER = PROJECT / "deploy" / "kubernetes" / "ray"
CLUSTER_SCHEMA = """
additionalProperties: false
required: [headGroupSpec]
properties:
  rayVersion: { type: string }
  headGroupSpec:
    additionalProperties: false
    required: [rayStartParams, template]
    properties:
      rayStartParams: &parameters { type: object, additionalProperties: { type: string } }
      template: { type: object }
  workerGroupSpecs:
    type: array
    items:
      additionalProperties: false
      required: [groupName, maxReplicas, minReplicas, rayStartParams, template]
      properties:
        groupName: { type: string }
        replicas: &count { type: integer, minimum: 0 }
        minReplicas: *count
        maxReplicas: *count
        rayStartParams: *parameters
        template: { type: object }
"""
CLUSTER = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
HEAD, TRITON = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
[WORKERS] = CLUSTER["spec"]["workerGroupSpecs"]
[WORKER] = WORKERS["template"]["spec"]["containers"]


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_it_fits_the_schemas() -> None:
    """That of ray.io/v1 is written here for the fields that are used."""
    spec = CLUSTER["spec"]
    jsonschema.validate(spec, yaml.safe_load(CLUSTER_SCHEMA))
    policy = yaml.safe_load((FOLDER / "network.yaml").read_text())
    kubernetes_validate.validate(policy, "1.37", strict=True)
    for template in (spec["headGroupSpec"]["template"], WORKERS["template"]):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}}
        kubernetes_validate.validate(pod | {"template": template}, "1.37", strict=True)


def test_all_know_the_same_tokens() -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "AGENT_TOKEN"):
        assert environment(HEAD)[name] == environment(TRITON)[name] == environment(WORKER)[name]


def test_triton_finds_ray_and_enough_hosts() -> None:
    ours, theirs = parse(TRITON["args"])
    assert not theirs
    assert WORKERS["replicas"] == WORKERS["minReplicas"] >= 1 + ours.ray_spares
    [gcs] = HEAD["ports"]
    assert environment(TRITON)["RAY_ADDRESS"] == f"$(POD_IP):{gcs['containerPort']}"
    assert environment(TRITON)["AGENT_HOST"] == "$(POD_IP)"
    assert HEAD["volumeMounts"] == TRITON["volumeMounts"]
    assert [*environment(TRITON)].index("POD_IP") == 0


def test_ray_is_that_of_the_image() -> None:
    pinned = re.search(r"^ray==(.+)$", (PROJECT / "requirements-ray.txt").read_text(), re.M)
    assert pinned
    assert CLUSTER["spec"]["rayVersion"] == pinned[1]
    assert {c["image"] for c in (HEAD, TRITON, WORKER)} == {
        f"triton-multi-device:{__version__}-ray"
    }
    stages = (PROJECT / "Dockerfile").read_text()
    assert re.search(r"^FROM cpu AS ray\n(.*\n)*?RUN pip .*-r requirements-ray.txt", stages, re.M)
