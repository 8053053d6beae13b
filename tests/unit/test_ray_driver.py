"""What Ray is asked for, without a Ray that is asked."""

from itertools import pairwise

import pytest

from python_mp.agent.ray_actor import without_rays

ray_driver = pytest.importorskip(
    "python_mp.agent.ray_driver", reason="Ray is not installed (requirements-ray.txt)"
)


def test_an_agent_has_the_environment_of_its_host() -> None:
    """Devices are the layout's to choose, and cores the agent's to share out."""
    given = {"AGENT_TOKEN": "t", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    assert without_rays(given | {"RAY_JOB_ID": "01"}) == {"AGENT_TOKEN": "t"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"GPU": 0}', '{"GPU": true}', '{"GPU": "8"}'])
def test_a_bundle_names_amounts(text: str) -> None:
    assert ray_driver.bundle('{"CPU": 1, "GPU": 0.5}') == {"CPU": 1.0, "GPU": 0.5}
    with pytest.raises(ValueError, match="bundle|Expecting"):
        ray_driver.bundle(text)


def test_an_agent_that_keeps_ending_is_started_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    place, starts = ray_driver._Place(), []
    for _ in range(120):
        if place.next_start():
            starts.append(now)
        now += 1.0
    assert [b - a for a, b in pairwise(starts)] == [1, 2, 5, 10, 30, 30, 30]
    now += 100.0
    assert place.next_start()
    now += 1.0
    assert place.next_start()
