"""A model that cannot work does not load: at once, with the key or file named, nothing left."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from build_scripts import ranker
from server.endpoints import Endpoints
from server.errors import ModelError
from server.process.launch import TritonServer
from tests.support.serving import Serve, processes_of
from tests.triton import repository
from tests.triton.repository import ECHO, MODELS, Layout, with_parameters

RANKER = with_parameters(
    (MODELS / "ranker" / "config.pbtxt").read_text().replace('name: "ranker"\n', ""),
    {"engine": "torch"},
)
MODULE = (MODELS / "ranker" / "module.py").read_text()
ALONE = 'instance_group [ { name: "lead" kind: KIND_CPU } ]'
SECONDS = 20.0  # on a busy machine; a wait for an instance would take 30

CONFIGS = {
    "too_few_shards": (
        with_parameters(ECHO, {"tensor_parallel_size": 3}),
        "tensor_parallel_size 3 x pipeline_parallel_size 1 = 3 ranks a replica, so 1 active "
        "instances need 2 passive ones; instance_group has 1 active and 1 passive",
    ),
    "too_many_shards": (
        with_parameters(ECHO, {"tensor_parallel_size": None}),
        "1 active instances need 0 passive ones; instance_group has 1 active and 1 passive",
    ),
    "no_shards": (
        Layout(2).apply(ECHO.replace(ECHO[ECHO.index("instance_group") :].split("\n")[0], ALONE)),
        "instance_group has 1 active and 0 passive",
    ),
    "unknown_parameter": (
        with_parameters(ECHO, {"colour": "red"}),
        "unknown parameter 'colour'; known: engine, tensor_parallel_size",
    ),
    "misspelt_parameter": (
        with_parameters(ECHO, {"tensor_paralel_size": 2}),
        "unknown parameter 'tensor_paralel_size'; did you mean 'tensor_parallel_size'?",
    ),
    "no_engine": (with_parameters(ECHO, {"engine": None}), "parameter 'engine' is missing"),
    "unknown_engine": (
        with_parameters(ECHO, {"engine": "tf"}),
        "parameter 'engine' is 'tf'; one of echo, torch",
    ),
    "no_number": (
        with_parameters(ECHO, {"max_batch_tokens": "many"}),
        "parameter 'max_batch_tokens' is 'many'; it must be a whole number",
    ),
    "dtype": (with_parameters(ECHO, {"dtype": "int4"}), "parameter 'dtype' is 'int4'; one of"),
    "strings": (
        ECHO.replace("TYPE_INT32", "TYPE_STRING"),
        "tensor 'X' is TYPE_STRING; python_mp carries",
    ),
    "no_batching": (
        ECHO.replace("max_batch_size: 8", "max_batch_size: 0").replace("dynamic_batching {}", ""),
        "max_batch_size must be at least 1",
    ),
}
MODULES = {
    "raises": ('raise ValueError("no such layer")', "1/module.py raised ValueError: no such layer"),
    "syntax": ("def build(shard:\n", "1/module.py raised SyntaxError"),
    "no_build": ("x = 1\n", "1/module.py has no function build(shard)"),
    "build_raises": (
        "def build(shard):\n    raise KeyError('depth')\n",
        "KeyError: 'depth'",
    ),
    "no_tensor": (
        "def build(shard):\n    return shard.weights.full('head.wait')\n",
        "hold no tensor 'head.wait'",
    ),
}
SHARDED = ("build_raises", "no_tensor")  # the others on one rank, to be quick


def add_all(models: Path, folder: Path) -> dict[str, str]:
    """Adds every broken model and a good one; the sentence that is expected of each."""
    weights = folder / "model.safetensors"
    save_file(dict(ranker.tensors()), weights)
    sentences = {"no_weights": "no *.safetensors in", "truncated": "model.safetensors is truncated"}
    for name, (config, sentence) in CONFIGS.items():
        repository.add(models, name, config)
        sentences[name] = sentence
    for name, (source, sentence) in MODULES.items():
        config = RANKER if name in SHARDED else Layout().apply(RANKER)
        repository.add(models, name, config, [weights], module=source)
        sentences[name] = sentence
    half = folder / "half" / "model.safetensors"
    half.parent.mkdir()
    half.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    repository.add(models, "no_weights", Layout().apply(RANKER), module=MODULE)
    repository.add(models, "truncated", RANKER, [half], module=MODULE)
    repository.add(models, "nothing", Layout().apply(RANKER), [weights])
    sentences["nothing"] = "holds neither module.py nor a checkpoint's config.json"
    repository.add(models, "good", ECHO)
    return sentences


@pytest.fixture(scope="module")
def broken(
    serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TritonServer, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("broken")
    sentences = add_all(folder / "repository", folder)
    with serve(folder / "repository", keep_going=True) as server:
        yield server, sentences


def test_each_names_the_key_or_file(broken: tuple[TritonServer, dict[str, str]]) -> None:
    """And none the time-out of a wait."""
    server, sentences = broken
    failures = server.log.failures
    wrong = {
        name: failures.get(name)
        for name in sentences
        if sentences[name] not in failures.get(name, "")
    }
    assert wrong == {}
    assert server.log.ready == {"good"}


def test_nothing_is_left_of_them(broken: tuple[TritonServer, dict[str, str]]) -> None:
    server, _ = broken
    commands = processes_of(server.run.folder).values()
    ranks = [command for command in commands if "python_mp.rank.forkserver" in command]
    assert len(ranks) == 3, "those of the good model, and where they come from"


def test_loading_one_by_one_is_no_deadlock(
    tmp_path: Path, check_left: Callable[[tuple[str, Path]], None]
) -> None:
    repository.add(tmp_path / "repository", "model", ECHO)
    environment = {"TRITON_PARALLEL_INSTANCE_LOADING": "0"}
    server = TritonServer(
        tmp_path / "repository", endpoints=Endpoints.free(), environment=environment
    )
    server.start()
    began = time.monotonic()
    with pytest.raises(ModelError, match="TRITON_PARALLEL_INSTANCE_LOADING=0 loads instances"):
        server.wait_ready()
    assert time.monotonic() - began < SECONDS
    check_left((server.run.prefix, server.run.folder))
