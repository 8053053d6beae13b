"""config.pbtxt: read with Triton's protobuf, completed as Triton completes it, never written."""

from pathlib import Path

import pytest

from build_scripts.errors import BuildError
from build_scripts.triton_config import contradiction, model_config
from python_mp.model import layout

HEAD = "max_batch_size: 4\n"
TWO = 'parameters { key: "tensor_parallel_size" value { string_value: "2" } }\n'


def said(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def ranks(folder: Path, text: str, **sizes: int) -> list[list[int]]:
    """The device of each rank, by replica."""
    (folder / "config.pbtxt").write_text(text)
    config = model_config(folder, "torch", "float32", sizes)
    replicas = layout.replicas(config)
    return [[rank.instance.device for rank in replica.ranks] for replica in replicas]


CPU = layout.CPU
PASSIVE = "{ passive: true count: 2 }"
PAIRS = [[CPU] * 2] * 2
SPELLINGS = (
    ("instance_group [ { kind: KIND_CPU count: 2 } ]", [[CPU], [CPU]]),
    (TWO + f"instance_group [ {PASSIVE}, {{ count: 2 }} ]", PAIRS),
    (f"# no {{ group\n{TWO}instance_group {{ count: 2 }}\ninstance_group {PASSIVE}", PAIRS),
    ("instance_group [ { gpus: [ 0, 3 ] } ]", [[0], [3]]),
)


def test_every_spelling_is_read(tmp_path: Path) -> None:
    for text, expected in SPELLINGS:
        assert ranks(tmp_path, HEAD + text) == expected


def test_a_group_that_names_no_gpus_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Triton completes it; with none to be seen there is nothing to serve on."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    text = HEAD + "instance_group [ { kind: KIND_GPU } ]\n"
    assert ranks(tmp_path, text) == [[0], [1]]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(BuildError, match=r"names no GPU, and there is none here: .*`gpus: \[ 0, 1"):
        ranks(tmp_path, text)


def test_another_layout_is_of_one_replica(tmp_path: Path) -> None:
    text = HEAD + TWO + "instance_group [ { count: 2 }, { passive: true count: 2 } ]"
    assert ranks(tmp_path, text, tensor_parallel_size=1) == [[CPU]]
    assert ranks(tmp_path, text, pipeline_parallel_size=2) == [[CPU] * 4]
    assert (tmp_path / "config.pbtxt").read_text() == text
    gpus = HEAD + "instance_group [ { gpus: [ 4, 5, 6 ] } ]"
    assert ranks(tmp_path, gpus, tensor_parallel_size=2) == [[4, 5]]  # the first of those named
    with pytest.raises(BuildError, match="1 active instances need 3 passive ones"):
        ranks(tmp_path, gpus, tensor_parallel_size=4)


def test_what_several_hosts_serve_is_built_on_this_one(tmp_path: Path) -> None:
    hosts = said("pipeline_parallel_size", "2") + said("hosts", "2")
    text = HEAD + TWO + hosts + "instance_group [ { count: 2 }, { passive: true count: 2 } ]"
    assert ranks(tmp_path, text) == [[CPU] * 4]
    assert ranks(tmp_path, text, pipeline_parallel_size=3) == [[CPU] * 6]
    with pytest.raises(BuildError, match="of 2 hosts only Triton's own has instances, 2 a replica"):
        ranks(tmp_path, HEAD + TWO + hosts + "instance_group [ { count: 2 } ]")


def test_what_cannot_be_served_is_named_with_the_file(tmp_path: Path) -> None:
    for text, sentence in (
        ("nonsense {", "is not valid"),
        (HEAD + TWO, "1 active instances need 1 passive ones; instance_group has 1 active and 0"),
        (HEAD + 'input [ { name: "T" data_type: TYPE_STRING dims: 1 } ]', "'T' is TYPE_STRING"),
    ):
        with pytest.raises(BuildError, match=rf"config\.pbtxt.*{sentence}"):
            ranks(tmp_path, text)


def test_what_is_said_twice_must_be_the_same(tmp_path: Path) -> None:
    for more, sentence in (
        ("", ""),
        (said("engine", "torch") + said("dtype", "float32"), ""),
        (said("engine", "onnxruntime"), "says engine onnxruntime, the recipe torch: take the"),
        (said("dtype", "int8"), "says dtype int8, the recipe float32: take the parameter"),
    ):
        (tmp_path / "config.pbtxt").write_text(HEAD + more)
        found = contradiction(tmp_path, "torch", "float32")
        assert sentence in found
        assert bool(found) == bool(sentence)
