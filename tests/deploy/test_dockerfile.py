"""What the Dockerfile's stages take from where."""

import re

import pytest

from server.process.installation import PROJECT

_STAGE = re.compile(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", re.M | re.S)
STAGES = dict(_STAGE.findall((PROJECT / "Dockerfile").read_text()))
# .dockerignore keeps compiled files out of what is copied in, so only one that compiles has any.
COMPILING = "build"
WITH_BACKENDS = [name for name in STAGES if re.search(r"^COPY .*\bbackends$", STAGES[name], re.M)]


def test_the_stages_are_found() -> None:
    assert {COMPILING, "cpu", "gpu", "gpu-build"} <= set(WITH_BACKENDS)


@pytest.mark.parametrize("name", sorted(set(WITH_BACKENDS) - {COMPILING}))
def test_a_stage_has_the_compiled_collectives(name: str) -> None:
    assert f"\nCOPY --from={COMPILING} /srv/backends backends\n" in STAGES[name]
    assert "\nCOPY backends" not in STAGES[name]
