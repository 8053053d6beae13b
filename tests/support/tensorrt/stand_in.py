"""A TensorRT that builds nothing and doubles numbers, behind the real one's interface.

Its engines have an input and an output, `x` and `y`, float32 [n, 4], and `y` is twice `x`. What
goes wrong is said by the attributes of `Library`, `fails` above all.
"""

import ctypes
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.replicas import Array
from tests.support.tensorrt.checked import Api, Fake, Members
from tests.support.tensorrt.cuda import Cuda

Bounds = tuple[int, int, int]


@dataclass
class Library:
    """What TensorRT is to do, and what it was asked."""

    real: ModuleType
    cuda: Cuda | None = None
    fails: str = ""
    stripped: bool = False
    names: tuple[str, str] = ("x", "y")
    host_names: tuple[str, ...] = ()
    dtype: str = "FLOAT"
    bounds: tuple[Bounds, ...] = ((1, 2, 4),)
    parsed: list[tuple[bytes, str]] = field(default_factory=list)
    configs: list[SimpleNamespace] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    communicators: list[Any] = field(default_factory=list)
    refitted: list[str] = field(default_factory=list)
    host_code: list[bool] = field(default_factory=list)
    executed: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Makes it what `import tensorrt` finds."""
        makers = {
            "Builder": self._builder,
            "OnnxParser": self._parser,
            "Runtime": self._runtime,
            "Refitter": lambda *_: {"error_recorder": None, "refit_cuda_engine": lambda: True},
            "OnnxParserRefitter": lambda *_: {
                "refit_from_file": lambda path: self.refitted.append(path) or True
            },
        }
        self._api = Api(self.real, makers)
        patch.setitem(sys.modules, "tensorrt", self._api)  # type: ignore[arg-type]

    def _require_gpu(self) -> None:
        if self.fails == "gpu":
            raise TypeError("factory function returned nullptr")

    def _builder(self, _logger: Any) -> Members:
        self._require_gpu()
        members: Members = {
            "error_recorder": None,
            "create_network": lambda: self._api.fake("INetworkDefinition"),
            "create_builder_config": self._config,
            "create_optimization_profile": self._profile,
            "build_serialized_network": lambda _, config: self._build(members, config),
        }
        return members

    def _build(self, builder: Members, config: Fake) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("build", None, 2)
        goes_on = monitor.step_complete("build", 0)
        monitor.phase_finish("build")
        if self.fails != "build" and goes_on:
            return b"plan"
        code = self.real.ErrorCodeTRT.INTERNAL_ERROR
        assert builder["error_recorder"].report_error(code, "no tactic for MatMul")
        return None

    def _config(self) -> Fake:
        made = SimpleNamespace(flags=[], cleared=[], workspace=0, profiles=[], cache=None)
        self.configs.append(made)

        def add(profile: Fake) -> int:
            made.profiles.append(vars(profile)["members"]["shapes"])
            return len(made.profiles) - 1 if self.fails != "profile" else -1

        def set_timing_cache(cache: Fake, _ignore_mismatch: bool) -> bool:
            made.cache = cache
            return self.fails != "cache" or bytes(cache.serialize()) == b"+"

        config = self._api.fake(
            "IBuilderConfig",
            set_flag=made.flags.append,
            clear_flag=made.cleared.append,
            set_memory_pool_limit=lambda _pool, size: setattr(made, "workspace", size),
            add_optimization_profile=add,
            create_timing_cache=lambda content: self._api.fake(
                "ITimingCache", serialize=lambda: content + b"+"
            ),
            set_timing_cache=set_timing_cache,
            get_timing_cache=lambda: made.cache,
        )
        made.members = vars(config)["members"]
        return config

    def _profile(self) -> Fake:
        shapes: dict[str, Any] = {}
        return self._api.fake(
            "IOptimizationProfile",
            shapes=shapes,
            set_shape=lambda name, *each: shapes.update({name: each}),
        )

    def _parser(self, _network: Any, _logger: Any) -> Members:
        def parse(model: bytes, path: str) -> bool:
            self.parsed.append((model, path))
            return self.fails != "graph"

        said = {"node_operator": "Einsum", "node_name": "mix", "desc": "unsupported equation"}
        says = {name: lambda text=text: text for name, text in said.items()}
        error = self._api.fake("ParserError", **says)
        return {"num_errors": 1, "parse": parse, "get_error": lambda _index: error}

    def _runtime(self, _logger: Any) -> Members:
        self._require_gpu()

        def load(content: Any) -> Fake | None:
            self.host_code.append(members["engine_host_code_allowed"])
            if self.fails != "load" and bytes(content) == b"plan":
                return self._engine()
            code = self.real.ErrorCodeTRT.UNSUPPORTED_STATE
            members["error_recorder"].report_error(code, "built for another GPU")
            return None

        members: Members = {"engine_host_code_allowed": False, "deserialize_cuda_engine": load}
        return members

    def _engine(self) -> Fake:
        real = self.real
        modes = {self.names[0]: real.TensorIOMode.INPUT, self.names[1]: real.TensorIOMode.OUTPUT}
        inspector = self._api.fake(
            "EngineInspector", get_engine_information=lambda _format: '{"Layers": ["double"]}'
        )
        return self._api.fake(
            "ICudaEngine",
            num_io_tensors=2,
            num_optimization_profiles=len(self.bounds),
            create_engine_inspector=lambda: inspector,
            get_engine_stat=lambda _stat: 64 if self.stripped else -1,
            get_tensor_name=self.names.__getitem__,
            get_tensor_mode=modes.__getitem__,
            get_tensor_dtype=lambda _name: getattr(real.DataType, self.dtype),
            is_shape_inference_io=self.host_names.__contains__,
            get_tensor_profile_shape=lambda _name, profile: [
                real.Dims((rows, 4)) for rows in self.bounds[profile]
            ],
            create_execution_context=lambda: None if self.fails == "memory" else self._context(),
        )

    def _context(self) -> Fake:
        now: dict[str, Any] = {}

        def execute(_stream: int) -> bool:
            addresses = dict(now)
            shape = addresses.pop("shape")

            def double() -> None:
                self.executed += 1
                x, y = (_at(addresses[name], shape) for name in self.names)
                y[:] = 2 * x

            assert self.cuda
            self.cuda.do(double)
            return self.fails != "run"

        def keep(name: str, value: Any) -> bool:
            now[name] = value
            return True

        return self._api.fake(
            "IExecutionContext",
            set_optimization_profile_async=lambda profile, _stream: (
                self.contexts.append(profile) or profile < len(self.bounds)
            ),
            set_communicator=lambda each: self.communicators.append(each) or True,
            set_input_shape=lambda _name, shape: keep("shape", shape),
            infer_shapes=list,
            get_tensor_shape=lambda _name: self.real.Dims(now["shape"]),
            set_tensor_address=keep,
            execute_async_v3=execute,
        )


def _at(address: int, shape: tuple[int, int]) -> Array:
    """The float32 numbers that lie there."""
    count = shape[0] * shape[1]
    memory = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(memory, np.float32).reshape(shape)
