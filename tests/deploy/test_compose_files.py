"""What docker-compose*.yml say, without an engine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.installation import PROJECT

FILES = sorted(PROJECT.glob("docker-compose*.yml"))
GRAFANA = PROJECT / "deploy" / "grafana" / "entrypoint.sh"


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in FILES:
        yield from yaml.safe_load(file.read_text())["services"].items()


def published() -> list[tuple[str, str]]:
    """(service, port as it is written), of all files."""
    return [(name, port) for name, service in services() for port in service.get("ports", [])]


@pytest.mark.parametrize(("service", "port"), published())
def test_only_the_front_is_opened_by_host(service: str, port: str) -> None:
    variable = "HOST" if service == "front" else "ADMIN_HOST"
    assert port.startswith(f"${{{variable}:-127.0.0.1}}:")


def grafana(data: Path, password: str | None = None) -> subprocess.CompletedProcess[str]:
    """Its entrypoint, with a command in Grafana's place that prints the password it is given."""
    own = {"PATH": os.environ["PATH"], "GF_PATHS_DATA": str(data)}
    if password is not None:
        own["GRAFANA_PASSWORD"] = password
    shown = ["sh", "-c", 'printf %s "$GF_SECURITY_ADMIN_PASSWORD"']
    return subprocess.run(["sh", GRAFANA, *shown], env=own, capture_output=True, text=True)


@pytest.mark.parametrize("empty", [None, ""])
def test_grafana_has_a_password_that_nobody_guesses(tmp_path: Path, empty: str | None) -> None:
    """Made once and kept where its owner finds it; another house has another one."""
    first, again = grafana(tmp_path, empty), grafana(tmp_path, empty)
    assert (first.returncode, again.stdout) == (0, first.stdout)
    assert len(first.stdout) >= 24
    kept = tmp_path / "admin-password"
    assert f"it is in {kept}\n" in first.stderr
    assert kept.read_text().strip() == first.stdout
    assert kept.stat().st_mode & 0o077 == 0
    (tmp_path / "other").mkdir()
    assert grafana(tmp_path / "other").stdout != first.stdout


def test_grafana_takes_a_password_of_yours(tmp_path: Path) -> None:
    assert grafana(tmp_path, "of mine").stdout == "of mine"
    assert list(tmp_path.iterdir()) == []


def test_grafana_refuses_the_password_that_everybody_tries(tmp_path: Path) -> None:
    refused = grafana(tmp_path, "admin")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "choose another one" in refused.stderr


def test_grafana_is_started_by_its_entrypoint() -> None:
    service = dict(services())["grafana"]
    assert service["entrypoint"] == ["sh", "/entrypoint.sh", "/run.sh"]
    assert f"./{GRAFANA.relative_to(PROJECT)}:/entrypoint.sh:ro" in service["volumes"]
    assert "admin" not in str(service["environment"])
