"""A server that starts before all of its models are built."""

from __future__ import annotations

import signal

import pytest

from tests.support.command import command
from tests.support.processes import until
from tests.support.python_models import BROKEN, ECHO, IDENTITY, add
from tests.triton.conftest import AddModel

ENSEMBLE = IDENTITY.replace('backend: "python"', 'platform: "ensemble"')
ENSEMBLE = ENSEMBLE.replace("instance_group [ { count: 1 kind: KIND_CPU } ]", "")
CHAIN = """
ensemble_scheduling { step [ {
  model_name: "late_step" model_version: -1
  input_map { key: "IN" value: "IN" }
  output_map { key: "OUT" value: "OUT" }
} ] }
"""


@pytest.mark.parametrize(
    ("is_stale", "why"), [(False, "it is not built yet"), (True, "it did not load")]
)
def test_what_is_not_built_is_loaded_once_it_is(
    add_model: AddModel, is_stale: bool, why: str
) -> None:
    """The build that the server starts fails, which changes nothing; then the version is there.
    Until then there is none, or one that cannot be loaded any more."""
    repository = add_model("identity", ECHO)
    step = add(repository, "late_step", ECHO)
    built = (step / "1").rename(repository / ".built")
    if is_stale:
        (step / "1").mkdir()
        (step / "1" / "model.py").write_text(BROKEN)
    add(repository, "late", "", ENSEMBLE + CHAIN)
    (repository / "late" / "recipe.toml").write_text('[steps.late_step]\nfamily = "no such"\n')
    with command(repository, "--build=late") as served:
        served.wait_ready()
        assert is_stale != ("late is not built yet; it is loaded once" in served.output)
        served.wait_for("the build of late failed; what is served goes on; next try in 10 s")
        assert "late_step" in served.output, "why, in the build's own words"
        assert served.answers()
        models = served.health()[1]["models"]
        assert served.is_ready
        for name in ("late", "late_step"):
            assert models[name]["reason"] == why
        built.rename(step / "2")
        until(lambda: served.answers(model="late"), 60)
        until(lambda: served.health()[1]["models"]["late"]["ready"])
        assert served.end(signal.SIGTERM)[0] == 0
    assert is_stale == ("did not load" in served.output)
