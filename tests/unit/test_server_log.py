"""tritonserver's log: lines it really wrote, and what is made of them."""

import pytest

from server.log import Log, Record, parse, reason

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


def test_parse() -> None:
    expected = Record("I", "05:48:46", "model_lifecycle.cc", "successfully loaded 'identity'")
    assert parse(READY) == expected


@pytest.mark.parametrize("line", ["", "| identity | 1 | READY |", "Signal (15) received.", "I11"])
def test_other_lines_are_no_records(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('"a\\nb"', "a\nb"),
        ('"say \\"hi\\" in Ünïcode"', 'say "hi" in Ünïcode'),
        ("no quotes at all", "no quotes at all"),
        ('"bad escape \\q\\n"', "bad escape \\q\n"),
        ('"', '"'),
    ],
)
def test_text_is_unquoted(written: str, text: str) -> None:
    record = parse(f"I1122 05:48:46.689991 3715 model.py:5] {written}")
    assert record is not None
    assert record.text == text


def test_ready_model_is_shown_and_remembered() -> None:
    log, shown = feed(READY)
    assert log.ready == {"identity"}
    assert shown == ["05:48:46 identity is ready"]


def test_failure_is_kept_for_the_end() -> None:
    log, shown = feed(FAILED)
    assert log.failures == {"broken": "ValueError: weights are missing (1/model.py, line 3)"}
    assert shown == []


@pytest.mark.parametrize(
    ("line", "name", "why"),
    [
        (
            'E1122 05:56:46.784703 5135 model_repository_manager.cc:1460] "Poll failed for model'
            " directory 'a': failed to open text file for read config.pbtxt\"",
            "a",
            "failed to open text file for read config.pbtxt",
        ),
        (
            "E1122 05:56:46.78 5135 model_repository_manager.cc:724] \"failed to load model 'b':"
            ' at least one version must be available"',
            "b",
            "at least one version must be available",
        ),
        (
            'E1122 05:56:47.85 5135 model_repository_manager.cc:703] "Invalid argument: ensemble'
            " 'c' depends on 'b' which has no loaded version. Model 'b' loading failed\"",
            "c",
            "it needs b, which did not load",
        ),
    ],
)
def test_ways_to_fail(line: str, name: str, why: str) -> None:
    assert feed(line)[0].failures == {name: why}


def test_config_that_does_not_parse_says_where() -> None:
    log, shown = feed(
        "[libprotobuf ERROR /tmp/text_format.cc:337] Error parsing text-format"
        " inference.ModelConfig: 1:32: no field named 'max_batch_siz'.",
        'E1122 05:56:46.785022 5135 model_repository_manager.cc:1460] "Poll failed for model'
        " directory 'a': failed to read text proto from a/config.pbtxt\"",
    )
    assert log.failures["a"].endswith("a/config.pbtxt: 1:32: no field named 'max_batch_siz'.")
    assert shown == []


def test_traceback_of_a_failure_is_not_shown_twice() -> None:
    _, shown = feed(
        "I1122 05:56:46.89 5156 pb_stub.cc:366]  Failed to initialize Python stub: ValueError: x",
        "",
        "At:",
        "  /srv/models/a/1/model.py(1): <module>",
        READY,
        "a model prints this",
    )
    assert shown == ["05:48:46 identity is ready", "a model prints this"]


def test_no_gpu_matters_only_where_there_is_one() -> None:
    assert feed(NO_GPU, "Error: Failed to initialize NVML")[1] == []
    assert len(feed(NO_GPU, gpu=True)[1]) == 1


def test_warnings_and_models_own_lines_are_shown() -> None:
    _, shown = feed(
        'W1122 05:48:45.1 3715 model.py:12] "rank 1 died; generation 2 starts"',
        'I1122 05:48:45.1 3715 model.py:12] "hello"',
        'I1122 05:48:45.1 3715 server.cc:604] "of no interest"',
        "+-----+",
    )
    assert shown == ["05:48:45 warning: rank 1 died; generation 2 starts", "05:48:45 hello"]


def test_raw_shows_every_line() -> None:
    lines = [READY, "+---+", FAILED]
    log, shown = feed(*lines, raw=True)
    assert shown == lines
    assert log.failures.keys() == {"broken"}


def test_unknown_option() -> None:
    log, shown = feed(
        "/opt/tritonserver/bin/tritonserver: unrecognized option '--foo=1'",
        "Usage: tritonserver [options]",
        "  --help",
        "\tPrint usage",
    )
    assert log.complaint == "unrecognized option '--foo=1'"
    assert shown == []


def test_bad_value_of_an_option() -> None:
    log, shown = feed(
        "Usage: tritonserver [options]", "Server:", 'Bad option: "--x".', "Got abc", ""
    )
    assert log.complaint == 'Bad option: "--x". Got abc'
    assert shown == []


def test_reason_of_several_lines_becomes_one() -> None:
    assert reason("Invalid argument: one\n  two") == "one two"


def test_tail_is_bounded() -> None:
    log, _ = feed(*map(str, range(100)))
    assert log.tail == [str(number) for number in range(80, 100)]
