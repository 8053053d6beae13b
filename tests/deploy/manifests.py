"""The manifests of deploy/kubernetes as data."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "deploy" / "kubernetes"
COMPONENTS = ("autoscaling", "gpu", "monitoring", "public", "repository", "spot")
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}

Resource = dict[str, Any]
Resources = Sequence[Resource]


def load(file: Path) -> list[Resource]:
    """All documents of a file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def base() -> list[Resource]:
    """What the base applies, from its files as they are."""
    [kustomization] = load(FOLDER / "base" / "kustomization.yaml")
    files = [FOLDER / "base" / name for name in kustomization["resources"]]
    return [resource for file in files for resource in load(file)]


def render(kubectl: str, components: Sequence[str], folder: Path) -> list[Resource]:
    """What `kubectl apply -k` would apply with these components; `folder` is empty, for its use."""
    here = Path(os.path.relpath(FOLDER, folder.resolve()))
    chosen = [str(here / component) for component in components]
    kustomization = {"resources": [str(here / "base")], "components": chosen}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return [document for document in yaml.safe_load_all(made.stdout) if document]


def of(resources: Resources, kind: str) -> list[Resource]:
    """Those of one kind."""
    return [each for each in resources if each["kind"] == kind]


def names(resources: Resources, kind: str) -> list[str]:
    """Of those of one kind."""
    return [each["metadata"]["name"] for each in of(resources, kind)]


def named(resources: Resources, kind: str, name: str) -> Resource:
    """The only one of this kind and name."""
    [found] = [each for each in of(resources, kind) if each["metadata"]["name"] == name]
    return found


def pod(deployment: Resource) -> Resource:
    """The specification of its Pods."""
    found: Resource = deployment["spec"]["template"]["spec"]
    return found


def container(deployment: Resource) -> Resource:
    """The only container of its Pods."""
    [only] = pod(deployment)["containers"]
    assert isinstance(only, dict)
    return only


def ports(deployment: Resource) -> dict[str, int]:
    """Of its container, by name."""
    return {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}


def selected(resources: Resources, labels: Mapping[str, str]) -> list[Resource]:
    """Deployments whose Pods have these labels."""
    return [
        each
        for each in of(resources, "Deployment")
        if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]


def environment(deployment: Resource) -> dict[str, str]:
    """The container's variables with plain values, $(NAME) in them replaced."""
    values = {"POD_NAMESPACE": "a-namespace"}
    for variable in container(deployment).get("env", []):
        if "value" in variable:
            values[variable["name"]] = _expand(variable["value"], values)
    return values


def arguments(deployment: Resource) -> list[str]:
    """The container's arguments, $(NAME) in them replaced."""
    values = environment(deployment)
    return [_expand(argument, values) for argument in container(deployment).get("args", [])]


def bytes_of(quantity: str) -> float:
    """4Gi is 4294967296."""
    return float(quantity[:-2]) * UNITS[quantity[-2:]]


def _expand(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), text)
