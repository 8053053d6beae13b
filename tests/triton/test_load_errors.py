"""A model that cannot work does not load: at once, with the key or file named, nothing left."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from server.endpoints import Endpoints
from server.errors import ModelError
from server.process.launch import TritonServer
from tests.support import python_models, repository
from tests.support.examples import ranker
from tests.support.python_models import BROKEN
from tests.support.repository import ECHO, MODELS, Layout, newest, with_parameters
from tests.support.serving import Serve, processes_of

RANKER = with_parameters(
    (MODELS / "ranker" / "config.pbtxt").read_text().replace('name: "ranker"\n', ""),
    {"engine": "torch"},
)
MODULE = (MODELS / "ranker" / "module.py").read_text()
ALONE = 'instance_group [ { name: "lead" kind: KIND_CPU } ]'

CONFIGS = {
    "too_few_shards": (
        with_parameters(ECHO, {"tensor_parallel_size": 3}),
        "tensor_parallel_size 3 x pipeline_parallel_size 1 = 3 ranks a replica, so 1 active "
        "instances need 2 passive ones; instance_group has 1 active and 1 passive",
    ),
    "misspelt_parameter": (
        with_parameters(ECHO, {"tensor_paralel_size": 2}),
        "unknown parameter 'tensor_paralel_size'; did you mean 'tensor_parallel_size'?",
    ),
}
MODULES = {
    "raises": ('raise ValueError("no such layer")', "1/module.py raised ValueError: no such layer"),
    "no_tensor": (
        "def build(shard):\n    return shard.weights.full('head.wait')\n",
        "hold no tensor 'head.wait'",
    ),
}


def add_all(models: Path, folder: Path) -> dict[str, str]:
    """Adds every broken model and a good one; the sentence that is expected of each."""
    weights = folder / "model.safetensors"
    save_file(dict(ranker.tensors()), weights)
    sentences = {"no_weights": "no *.safetensors in", "truncated": "model.safetensors is truncated"}
    for name, (config, sentence) in CONFIGS.items():
        repository.add(models, name, config)
        sentences[name] = sentence
    for name, (source, sentence) in MODULES.items():
        repository.add(models, name, Layout().apply(RANKER), [weights], module=source)
        sentences[name] = sentence
    half = folder / "half" / "model.safetensors"
    half.parent.mkdir()
    half.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    repository.add(models, "no_weights", Layout().apply(RANKER), module=MODULE)
    repository.add(models, "truncated", RANKER, [half], module=MODULE)
    repository.add(models, "nothing", Layout().apply(RANKER), [weights])
    sentences["nothing"] = "holds neither module.py nor a checkpoint's config.json"
    repository.add(models, "good", ECHO)
    return sentences | harmed_models(models) | wrong_pair(models)


def harmed_models(models: Path) -> dict[str, str]:
    """Files that must not be touched, and one that raises."""
    names = ("broken", "fifo", "out", "dangling")
    broken, fifo, out, dangling = (python_models.add(models, name) for name in names)
    (broken / "1" / "model.py").write_text(BROKEN)
    (fifo / "config.pbtxt").unlink()
    os.mkfifo(fifo / "config.pbtxt")
    (out / "1" / "weights").symlink_to("/etc/hostname")
    (dangling / "1" / "weights").symlink_to("nowhere")
    return {
        "broken": "ValueError: the weights are missing (1/model.py, line 4)",
        "fifo": "fifo/config.pbtxt is neither a file nor a folder",
        "out": "out/1/weights is a link that leads out of the repository; put a copy there",
        "dangling": "dangling/1/weights cannot be read: No such file or directory",
    }


def wrong_pair(models: Path) -> dict[str, str]:
    """`embed`, whose tokenizer says that it is of another checkpoint than its encoder."""
    repository.copy(models, "embed", "embed_tokenizer", "embed_encoder", "embed_vectors")
    manifest = models / "embed_tokenizer" / newest("embed_tokenizer").name / "manifest.json"
    said = json.loads(manifest.read_text())
    said["source"]["tokenizer"] = "0" * 64
    manifest.unlink()  # it is a link to the project's own
    manifest.write_text(json.dumps(said))
    sentence = "the ensemble embed would answer nonsense"
    return {"embed_tokenizer": sentence, "embed_encoder": sentence}


def test_each_names_the_key_or_file_and_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    """And none the time-out of a wait."""
    sentences = add_all(tmp_path / "repository", tmp_path)
    with serve(tmp_path / "repository", keep_going=True) as server:
        failures = server.log.failures
        wrong = [name for name in sentences if sentences[name] not in failures.get(name, "")]
        assert wrong == [], failures
        assert server.log.ready == {"good", "embed_vectors"}
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
    with pytest.raises(ModelError, match="TRITON_PARALLEL_INSTANCE_LOADING=0 loads instances"):
        server.wait_ready()  # at once: a wait for an instance would say that it took too long
    check_left((server.run.prefix, server.run.folder))
