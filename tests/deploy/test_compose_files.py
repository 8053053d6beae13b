"""What docker-compose*.yml, the Dockerfile and the entrypoints say, without an engine."""

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

from python_mp.agent import __main__ as agent
from server.__main__ import parse
from server.endpoints import Endpoints
from server.process.installation import PROJECT

FILES = sorted(PROJECT.glob("docker-compose*.yml"))
REPOSITORY = "${MODEL_REPOSITORY:-./model_repository}:/srv/model_repository"
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S))
ALERTS = "alertmanager"


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in FILES:
        yield from yaml.safe_load(file.read_text())["services"].items()


def entrypoint(service: str, *command: str, **own: str) -> subprocess.CompletedProcess[str]:
    """The service's, with a command in the place of its own."""
    script = ["sh", str(PROJECT / "deploy" / service / "entrypoint.sh"), *command]
    environment = {"PATH": os.environ["PATH"]} | own
    return subprocess.run(script, env=environment, capture_output=True, text=True)


def test_only_the_front_is_opened_by_host() -> None:
    for name, service in services():
        variable = "HOST" if name == "front" else "ADMIN_HOST"
        for port in service.get("ports", []):
            assert port.startswith(f"${{{variable}:-127.0.0.1}}:"), name


def grafana(data: Path, **own: str) -> subprocess.CompletedProcess[str]:
    """It prints the password that Grafana would be given."""
    shown = ["sh", "-c", 'printf %s "$GF_SECURITY_ADMIN_PASSWORD"']
    return entrypoint("grafana", *shown, GF_PATHS_DATA=str(data), **own)


def test_grafana_has_a_password_that_nobody_guesses(tmp_path: Path) -> None:
    """Made once and kept where its owner finds it; another house has another one."""
    first, again = grafana(tmp_path, GRAFANA_PASSWORD=""), grafana(tmp_path)
    assert (first.returncode, again.stdout) == (0, first.stdout)
    assert len(first.stdout) >= 24
    kept = tmp_path / "admin-password"
    assert str(kept) in first.stderr
    assert kept.read_text().strip() == first.stdout
    assert kept.stat().st_mode & 0o077 == 0
    (tmp_path / "other").mkdir()
    assert grafana(tmp_path / "other").stdout != first.stdout


def test_grafana_takes_a_password_of_yours_but_not_what_everybody_tries(tmp_path: Path) -> None:
    assert grafana(tmp_path, GRAFANA_PASSWORD="of mine").stdout == "of mine"
    refused = grafana(tmp_path, GRAFANA_PASSWORD="admin")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_one_broken_model_keeps_no_server_from_starting() -> None:
    """Else a container that is started again would be the end of all models."""
    commands = [
        each["command"] for name, each in services() if name == "triton" and "command" in each
    ]
    assert len(commands) == 3
    assert all("--keep-going" in command for command in commands)


def test_agents_are_told_what_they_take() -> None:
    """And triton lets them connect, with the same token, which must be given."""
    said = yaml.safe_load((PROJECT / "docker-compose.hosts.yml").read_text())["services"]
    triton = said.pop("triton")
    ours, theirs = parse([w for w in triton["command"].split() if not w.startswith("$")][:3])
    assert (ours.agents, theirs) == (True, [])
    token = triton["environment"]["AGENT_TOKEN"]
    assert token.startswith("${AGENT_TOKEN:?")
    asked = [agent.parse(each["command"].split()) for each in said.values()]
    assert {each.connect for each in asked} == {f"triton:{Endpoints().agents}"}
    assert len({each.name for each in asked}) == len(asked) == 2
    for each in said.values():
        assert each["entrypoint"][-2:] == ["-m", "python_mp.agent"]
        assert each["environment"]["AGENT_TOKEN"] == token
        assert "ports" not in each


def alertmanager(folder: Path, **own: str) -> subprocess.CompletedProcess[str]:
    """It prints the configuration that Alertmanager would be given."""
    return entrypoint(ALERTS, "sh", "-c", 'cat "$CONFIG"', CONFIG=str(folder / "config.yml"), **own)


@pytest.mark.parametrize("url", ["", "http://a:1/x", "https://u@h.org/T/[b]?c=d&e=%20f#g"])
def test_alerts_go_to_the_webhook_if_there_is_one(tmp_path: Path, url: str) -> None:
    started = alertmanager(tmp_path, ALERT_WEBHOOK=url)
    config = yaml.safe_load(started.stdout)
    hooks = {"webhook_configs": [{"url": url, "send_resolved": True}]} if url else {}
    assert config["receivers"] == [{"name": config["route"]["receiver"], **hooks}]
    assert ("ALERT_WEBHOOK is not set" in started.stderr) == (not url)
    assert (tmp_path / "config.yml").stat().st_mode & 0o077 == 0, "such addresses are secret"


@pytest.mark.parametrize("url", ["a:1", "ftp://a", "https://", "https://a'b", "http://a\nb", "x y"])
def test_a_webhook_that_cannot_be(tmp_path: Path, url: str) -> None:
    refused = alertmanager(tmp_path, ALERT_WEBHOOK=url)
    assert (refused.returncode, refused.stdout) == (1, "")


def test_prometheus_tells_alertmanager() -> None:
    """By name: where there is none, nothing is sent and nothing is wrong."""
    config = yaml.safe_load((PROJECT / "deploy/prometheus/prometheus.yml").read_text())
    [manager] = config["alerting"]["alertmanagers"]
    assert manager["dns_sd_configs"][0]["names"] == [ALERTS]
    assert ALERTS in dict(services())


def test_images_are_pinned() -> None:
    """To one that will be the same tomorrow."""
    for name, service in services():
        tag = service.get("image", "x:1.0").rpartition(":")[2].removesuffix("}").lstrip("-v")
        ours = service["image"].startswith("${REGISTRY") if "image" in service else True
        assert ours or re.fullmatch(r"\d+\.\d+\.\d+.*", tag), name
    pinned = re.findall(r"^ARG \w+_IMAGE=(\S+)", DOCKERFILE, re.M)
    assert pinned
    assert all(re.search(r":\d+\.\d+", image) for image in pinned), pinned


def test_all_images_have_the_compiled_collectives() -> None:
    """.dockerignore keeps compiled files out of what is copied in, so only `build` has any."""
    having = {name for name in STAGES if re.search(r"^COPY .*\bbackends$", STAGES[name], re.M)}
    assert {"build", "cpu", "gpu", "gpu-build"} <= having
    for name in having - {"build"}:
        assert "\nCOPY --from=build /srv/backends backends\n" in STAGES[name]
        assert "\nCOPY backends" not in STAGES[name]


def test_the_repository_of_the_clone_is_built_and_served() -> None:
    """What is missing or stale is built before triton starts."""
    main = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
    assert main["triton"]["volumes"] == [f"{REPOSITORY}:ro,z"]
    assert f"{REPOSITORY}:z" in main["build"]["volumes"] == main["later"]["volumes"]
    assert main["later"]["image"] == main["build"]["image"]
    assert main["triton"]["depends_on"]["build"]["condition"] == "service_completed_successfully"


def test_builds_as_the_owner_of_the_repository() -> None:
    """Root does; others build as who they are. And it says what the server may not read, as a clone
    made under umask 077 has it."""
    owner = (65533, 65532) if os.getuid() == 0 else (os.getuid(), os.getgid())
    with tempfile.TemporaryDirectory() as name:
        srv = Path(name)
        srv.chmod(0o755)  # for the other user
        for folder in ("model_repository", "build", "bin", "model_repository/hidden"):
            (srv / folder).mkdir()
        python = srv / "bin" / "python"
        python.write_text('#!/bin/sh\necho "$(id -u):$(id -g) $*"\n')
        python.chmod(0o755)
        os.chown(srv / "model_repository", *owner)
        own = {"SRV": name, "PATH": f"{srv}/bin:{os.environ['PATH']}"}
        built = entrypoint("builder", "--check", "a model", **own)
        asked = f"{owner[0]}:{owner[1]} -m build_scripts.build --check a model\n"
        assert (built.stdout, built.stderr) == (asked, "")
        assert ((srv / "build").stat().st_uid, (srv / "build").stat().st_gid) == owner
        (srv / "model_repository" / "chat").mkdir()
        (srv / "model_repository" / "chat" / "recipe.toml").touch()
        later = entrypoint("builder", **own, LATER="chat nobody").stdout
        assert later.endswith(" -m build_scripts.build --except=chat\n")
        assert "--except" not in entrypoint("builder", "embed", **own, LATER="chat").stdout
        (srv / "model_repository" / "hidden").chmod(0o700)
        said = entrypoint("builder", **own).stderr
        assert "may not read model_repository/hidden; on the host: chmod" in said
