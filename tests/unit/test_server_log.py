"""tritonserver's log: lines it really wrote, and what is made of them."""

import pytest

from server.process.log import Log, parse

READY = "I1122 05:48:46.689991 3715 model_lifecycle.cc:839] \"successfully loaded 'identity'\""
FAILED = (
    "E1122 05:48:46.82 3715 model_lifecycle.cc:642] \"failed to load 'broken' version 1: Internal:"
    ' ValueError: weights are missing\\n\\nAt:\\n  /srv/models/broken/1/model.py(3): initialize\\n"'
)
NO_GPU = 'E1122 05:48:45.174034 3715 server.cc:241] "CudaDriverHelper has not been initialized."'


def feed(*lines: str, raw: bool = False, gpu: bool = False) -> tuple[Log, list[str]]:
    shown: list[str] = []
    log = Log(shown.append, raw=raw, gpu=gpu)
    for line in lines:
        log.feed(line)
    return log, shown


def test_text_is_unquoted() -> None:
    for written, text in ((r'"say \"hi\"\n"', 'say "hi"\n'), ("plain", "plain"), ('"', '"')):
        record = parse(f"I1122 05:48:46.689991 3715 model.py:5] {written}")
        assert record is not None
        assert record.text == text


def test_warnings_and_models_own_lines_are_shown() -> None:
    log, shown = feed(
        READY,
        'W1122 05:48:45.1 3715 model.py:12] "rank 1 died; generation 2 starts"',
        'I1122 05:48:45.1 3715 model.py:12] "hello"',
        'I1122 05:48:45.1 3715 server.cc:604] "of no interest"',
        "+-----+",
    )
    warning = "05:48:45 warning: rank 1 died; generation 2 starts"
    assert shown == ["05:48:46 identity is ready", warning, "05:48:45 hello"]
    assert log.ready == {"identity"}
    assert feed(NO_GPU, "Error: Failed to initialize NVML")[1] == [], "only where there is one"
    assert len(feed(NO_GPU, gpu=True)[1]) == 1
    log, _ = feed(*map(str, range(100)))
    assert log.tail == [str(number) for number in range(80, 100)]


MANAGER = 'E1122 05:56:46.78 5135 model_repository_manager.cc:1460] "'


@pytest.mark.parametrize(
    ("line", "name", "why"),
    [
        (FAILED, "broken", "ValueError: weights are missing (1/model.py, line 3)"),
        (
            f"{MANAGER}failed to load model 'b': no version is available\"",
            "b",
            "no version is available",
        ),
        (
            f"{MANAGER}Invalid argument: ensemble 'c' depends on 'b' which has no loaded version."
            " Model 'b' loading failed\"",
            "c",
            "it needs b, which did not load",
        ),
        (
            "[libprotobuf ERROR /tmp/text_format.cc:337] Error parsing text-format"
            " inference.ModelConfig: 1:32: no field named 'max_batch_siz'.\n"
            f"{MANAGER}Poll failed for model directory 'a': failed to read text proto from a\"",
            "a",
            "failed to read text proto from a: 1:32: no field named 'max_batch_siz'.",
        ),
    ],
)
def test_ways_to_fail_are_kept_for_the_end(line: str, name: str, why: str) -> None:
    log, shown = feed(*line.split("\n"))
    assert log.failures == {name: why}
    assert shown == []
    assert feed(*line.split("\n"), raw=True)[1] == line.split("\n")
    assert feed(*line.split("\n"), raw=True)[0].failures == {name: why}
