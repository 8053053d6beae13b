"""What docker-compose*.yml say, without an engine."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.process.installation import PROJECT

FILES = sorted(PROJECT.glob("docker-compose*.yml"))
REPOSITORY = "${MODEL_REPOSITORY:-./model_repository}:/srv/model_repository"
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


def test_one_broken_model_keeps_no_server_from_starting() -> None:
    """Else a container that is started again would be the end of all models."""
    commands = [
        each["command"] for name, each in services() if name == "triton" and "command" in each
    ]
    assert len(commands) == 2
    assert all("--keep-going" in command for command in commands)


ALERTS = PROJECT / "deploy" / "alertmanager" / "entrypoint.sh"


def alertmanager(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Its entrypoint, with a command in Alertmanager's place that shows what it is given."""
    own = {"PATH": os.environ["PATH"], "CONFIG": str(folder / "config.yml"), **environment}
    shown = ["sh", "-c", 'cat "$CONFIG"']
    return subprocess.run(["sh", ALERTS, *shown], env=own, capture_output=True, text=True)


@pytest.mark.parametrize("unset", [{}, {"ALERT_WEBHOOK": ""}])
def test_alerts_go_nowhere_unless_told(tmp_path: Path, unset: dict[str, str]) -> None:
    started = alertmanager(tmp_path, **unset)
    config = yaml.safe_load(started.stdout)
    assert config["receivers"] == [{"name": config["route"]["receiver"]}]
    assert "ALERT_WEBHOOK is not set" in started.stderr


@pytest.mark.parametrize(
    "url", ["http://a:1/x", "https://hooks.example.com/T/b?c=d&e=%20f#g", "https://u@h/[1]"]
)
def test_alerts_go_to_the_webhook(tmp_path: Path, url: str) -> None:
    started = alertmanager(tmp_path, ALERT_WEBHOOK=url)
    config = yaml.safe_load(started.stdout)
    [receiver] = config["receivers"]
    assert receiver["name"] == config["route"]["receiver"]
    assert receiver["webhook_configs"] == [{"url": url, "send_resolved": True}]
    assert (tmp_path / "config.yml").stat().st_mode & 0o077 == 0, "such addresses are secret"


@pytest.mark.parametrize("url", ["a:1", "ftp://a", "https://", "https://a'b", "http://a\nb", "x y"])
def test_a_webhook_that_cannot_be(tmp_path: Path, url: str) -> None:
    refused = alertmanager(tmp_path, ALERT_WEBHOOK=url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "must be an address such as https://" in refused.stderr


def test_prometheus_tells_alertmanager() -> None:
    """By name: where there is none, nothing is sent and nothing is wrong."""
    config = yaml.safe_load((PROJECT / "deploy/prometheus/prometheus.yml").read_text())
    [manager] = config["alerting"]["alertmanagers"]
    assert manager["dns_sd_configs"][0]["names"] == ["alertmanager"]
    assert "alertmanager" in dict(services())


def test_images_are_pinned() -> None:
    """To one that will be the same tomorrow."""
    for name, service in services():
        tag = service.get("image", "x:1.0").rpartition(":")[2].removesuffix("}").lstrip("-v")
        ours = service["image"].startswith("${REGISTRY") if "image" in service else True
        assert ours or re.fullmatch(r"\d+\.\d+\.\d+.*", tag), name
    pinned = re.findall(r"^ARG \w+_IMAGE=(\S+)", (PROJECT / "Dockerfile").read_text(), re.M)
    assert pinned
    assert all(re.search(r":\d+\.\d+", image) for image in pinned), pinned


def test_the_repository_of_the_clone_is_built_and_served() -> None:
    """What is missing or stale is built before triton starts."""
    main = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
    assert main["triton"]["volumes"] == [f"{REPOSITORY}:ro,z"]
    assert f"{REPOSITORY}:z" in main["build"]["volumes"]
    assert main["triton"]["depends_on"]["build"]["condition"] == "service_completed_successfully"


@pytest.fixture
def srv() -> Iterator[Path]:
    """A place as /srv in the images; a `python` in it says as whom it runs, and what."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)  # for the other user
        for folder in ("model_repository", "build", "bin"):
            (place / folder).mkdir()
        (place / "bin" / "python").write_text('#!/bin/sh\necho "$(id -u):$(id -g) $*"\n')
        (place / "bin" / "python").chmod(0o755)
        yield place


def build(srv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {"SRV": str(srv), "PATH": f"{srv}/bin:{os.environ['PATH']}"}
    command = ["sh", str(PROJECT / "deploy" / "builder" / "entrypoint.sh"), *arguments]
    return subprocess.run(command, env=own, capture_output=True, text=True)


def test_builds_as_the_owner_of_the_repository(srv: Path) -> None:
    """Root does; others build as who they are."""
    owner = (65533, 65532) if os.getuid() == 0 else (os.getuid(), os.getgid())
    os.chown(srv / "model_repository", *owner)
    built = build(srv, "--check", "a model")
    asked = f"{owner[0]}:{owner[1]} -m build_scripts.build --check a model\n"
    assert (built.stdout, built.stderr) == (asked, "")
    assert ((srv / "build").stat().st_uid, (srv / "build").stat().st_gid) == owner


@pytest.mark.parametrize(("kind", "mode"), [("file", 0o600), ("folder", 0o700)])
def test_says_what_the_server_may_not_read(srv: Path, kind: str, mode: int) -> None:
    """As a clone made under umask 077 has it."""
    hidden = srv / "model_repository" / "hidden"
    hidden.mkdir() if kind == "folder" else hidden.touch()
    hidden.chmod(mode)
    assert "may not read model_repository/hidden; on the host: chmod" in build(srv).stderr
