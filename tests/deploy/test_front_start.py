"""entrypoint.sh and certificate.sh: what they make of the environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.conftest import NewFront
from tests.deploy.front import NGINX, TOKEN
from tests.support.programs import Program

Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def check(program: Program, tmp_path: Path) -> Check:
    """`check(NAME="value")` is `entrypoint.sh -t` with this environment."""

    def checked(**environment: str) -> subprocess.CompletedProcess[str]:
        own = {"NGINX_BIN": program("nginx"), "RUN_DIR": str(tmp_path), "TLS_DIR": str(tmp_path)}
        subprocess.run(["sh", NGINX / "certificate.sh", tmp_path], check=True)
        return subprocess.run(
            ["sh", NGINX / "entrypoint.sh", "-t"],
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
        )

    return checked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("MAX_BODY", "16 MB"), ("MAX_JSON", "-1"), ("UPSTREAM", "a; daemon on")),
        *(("STREAM_LIFETIME", "soon"), ("STREAM_LIFETIME", "m"), ("MAX_STREAMS", "{}")),
    ],
)
def test_what_cannot_be(check: Check, name: str, value: str) -> None:
    checked = check(**{name: value})
    assert checked.returncode == 1
    assert checked.stderr.startswith(f"front: {name} ")
    assert value in checked.stderr


def test_sizes(check: Check, tmp_path: Path) -> None:
    assert check(MAX_BODY="2m", MAX_JSON="512k").returncode == 0
    config = (tmp_path / "nginx.conf").read_text()
    assert f"client_max_body_size {2 << 20};" in config
    assert f"js_var $max_json {512 << 10};" in config


def test_the_token_is_nowhere_to_be_read(new_front: NewFront, tmp_path: Path) -> None:
    """Neither in an environment nor in a file. And a pair for TLS is made where none is."""
    (tmp_path / "none").mkdir()
    tls = {"TLS_DIR": str(tmp_path / "none"), "TLS_MADE": str(tmp_path / "made")}
    with new_front(tmp_path / "front", UPSTREAM="127.0.0.1", **tls) as started:
        for pid in (started.process.pid, *started.workers):
            assert TOKEN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        run = tmp_path / "front" / "run"
        assert (run / "admin.conf").stat().st_mode & 0o077 == 0
        for file in run.rglob("*"):
            assert not file.is_file() or TOKEN.encode() not in file.read_bytes()
        assert f"mount tls.crt and tls.key at {tmp_path / 'none'}" in started.errors
        assert (tmp_path / "made" / "tls.crt").exists()


def test_certificate_names_and_keeps(program: Program, tmp_path: Path) -> None:
    show = [program("openssl"), "x509", "-noout", "-ext", "subjectAltName", "-in"]
    command = ["sh", str(NGINX / "certificate.sh"), str(tmp_path / "tls"), "my.host", "10.0.0.1"]
    subprocess.run(command, check=True)
    certificate = tmp_path / "tls" / "tls.crt"
    shown = subprocess.run([*show, certificate], capture_output=True, check=True).stdout
    for name in (b"DNS:localhost", b"DNS:front", b"DNS:my.host", b"127.0.0.1", b"10.0.0.1"):
        assert name in shown
    assert (tmp_path / "tls" / "tls.key").stat().st_mode & 0o077 == 0
    made = certificate.read_bytes()
    subprocess.run(command, check=True)
    assert certificate.read_bytes() == made
