"""One rank's ONNX graph becomes a TensorRT plan, with the inspector's report beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.progress import Progress

from build_scripts import onnx_file
from build_scripts.errors import BuildError
from build_scripts.recipe import TensorRt
from build_scripts.tensorrt.profiles import Profile
from build_scripts.tensorrt.watch import progress_monitor
from python_mp.model.errors import LoadError
from python_mp.rank.engines.onnx_graph import COLLECTIVE
from python_mp.rank.engines.tensorrt_api import create, error_recorder, library, messages


def build(
    graph: Path,
    path: Path,
    shapes: Sequence[Profile],
    options: TensorRt,
    timing_cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Writes the plan to `path`, and to `PATH.json` what this returns.

    Args:
        graph: ONNX file; its types are the plan's, so float32 is float32 and never TF32.
        shapes: a profile for each range of shapes, the first one that fits is used.
        timing_cache: kernel timings of earlier builds, which this one reads and adds to.

    Returns:
        TensorRT's version, seconds, size in bytes and the plan's layers.

    Raises:
        BuildError: TensorRT is missing or refuses; the message has every reason it gave.
    """
    try:
        return _Build(graph, options, progress).run(path, shapes, timing_cache)
    except LoadError as error:
        raise BuildError(str(error)) from None


class _Build:
    """One graph's build: what TensorRT wants to be kept alive meanwhile."""

    def __init__(self, graph: Path, options: TensorRt, progress: Progress) -> None:
        self._trt = library()
        self._graph, self._options = graph, options
        self._recorder = error_recorder(self._trt)
        self._monitor = progress_monitor(self._trt, progress, graph.stem)
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._builder = create(self._trt.Builder, self._logger)
        self._builder.error_recorder = self._recorder

    def run(self, path: Path, shapes: Sequence[Profile], timing_cache: Path) -> dict[str, Any]:
        start = perf_counter()
        network = self._network()
        config = self._config()
        for profile in shapes:
            self._add(config, profile)
        self._set_timing_cache(config, timing_cache)
        plan = self._builder.build_serialized_network(network, config)
        if self._monitor.cancelled:
            raise KeyboardInterrupt
        self._must(plan is not None, "cannot be built")
        content = bytes(plan)
        path.write_bytes(content)
        _replace(timing_cache, bytes(config.get_timing_cache().serialize()))
        report = {
            "tensorrt": self._trt.__version__,
            "seconds": round(perf_counter() - start, 1),
            "bytes": len(content),
            **self._inspect(content),
        }
        path.with_name(f"{path.name}.json").write_text(json.dumps(report, indent=2) + "\n")
        return report

    def _network(self) -> Any:
        network = self._builder.create_network()
        parser = self._trt.OnnxParser(network, self._logger)
        if not parser.parse(_parseable(self._graph), str(self._graph)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reasons = "; ".join(
                f"{e.node_operator()} '{e.node_name()}': {e.desc()}" for e in errors
            )
            raise BuildError(f"TensorRT does not take the graph {self._graph.name}: {reasons}")
        return network

    def _config(self) -> Any:
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()
        config.progress_monitor = self._monitor
        config.builder_optimization_level = options.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper()
        )
        if options.workspace_gib is not None:
            size = int(options.workspace_gib * (1 << 30))
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
        config.clear_flag(trt.BuilderFlag.TF32)
        for flag in self._flags():
            config.set_flag(flag)
        return config

    def _flags(self) -> list[Any]:
        flags, options = self._trt.BuilderFlag, self._options
        chosen = {
            flags.VERSION_COMPATIBLE: options.version_compatible,
            flags.REFIT: options.refit,
            flags.STRIP_PLAN: options.strip_plan,
            # The same weights again, which leaves more to optimise than any weights do.
            flags.REFIT_IDENTICAL: options.strip_plan and not options.refit,
        }
        return [flag for flag, wanted in chosen.items() if wanted]

    def _add(self, config: Any, shapes: Profile) -> None:
        profile = self._builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.min, shape.opt, shape.max)
        self._must(config.add_optimization_profile(profile) >= 0, f"has no profile {dict(shapes)}")

    def _set_timing_cache(self, config: Any, path: Path) -> None:
        """One that another GPU or TensorRT left is of no use, and replaced."""
        content = path.read_bytes() if path.exists() else b""
        if not config.set_timing_cache(config.create_timing_cache(content), False):
            self._recorder.clear()
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _inspect(self, plan: bytes) -> dict[str, Any]:
        """That the plan loads here, and what it is made of."""
        runtime = create(self._trt.Runtime, self._logger)
        runtime.error_recorder = self._recorder
        runtime.engine_host_code_allowed = self._options.version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
        self._must(engine is not None, "was built, but cannot be loaded")
        inspector = engine.create_engine_inspector()
        report = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        layers: dict[str, Any] = json.loads(report)
        return {"profiles": engine.num_optimization_profiles, "engine": layers}

    def _must(self, holds: bool, problem: str) -> None:
        if not holds:
            reasons = messages(self._recorder)
            raise BuildError(f"TensorRT: the graph {self._graph.name} {problem}: {reasons}")


def _parseable(graph: Path) -> bytes:
    """The graph with its collectives in the domain where TensorRT's parser has them."""
    model = onnx_file.graph(graph)
    for node in model.graph.node:
        if node.op_type == COLLECTIVE:
            node.domain = ""
    content: bytes = model.SerializeToString()
    return content


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.replace(path)
