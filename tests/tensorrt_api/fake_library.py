"""A TensorRT that builds nothing and doubles numbers, behind the real one's interface.

Its engines have an input and an output, `x` and `y`, float32 [n, 4], and `y` is twice `x`. What
goes wrong is said by the attributes of `Library`.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.harness import Array
from tests.tensorrt_api.cuda import Cuda
from tests.tensorrt_api.fakes import Api, Behaviour, HostMemory

Bounds = tuple[int, int, int]


@dataclass
class Library:
    """What TensorRT is to do, and what it was asked."""

    real: ModuleType
    cuda: Cuda | None = None
    has_gpu: bool = True
    takes_graph: bool = True
    builds: bool = True
    takes_profile: bool = True
    takes_cache: bool = True
    loads: bool = True
    runs: bool = True
    interrupted: bool = False
    has_memory: bool = True
    stripped: bool = False
    names: tuple[str, str] = ("x", "y")
    host_names: tuple[str, ...] = ()
    dtype: str = "FLOAT"
    bounds: tuple[Bounds, ...] = ((1, 2, 4),)
    parsed: list[tuple[bytes, str]] = field(default_factory=list)
    configs: list[IBuilderConfig] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    communicators: list[Any] = field(default_factory=list)
    refitted: list[str] = field(default_factory=list)
    host_code: list[bool] = field(default_factory=list)
    executed: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> Api:
        """Makes it what `import tensorrt` finds."""
        constructed = (Builder, OnnxParser, Runtime, Refitter, OnnxParserRefitter)
        api = Api(self.real, *map(self.bound, constructed))
        patch.setitem(sys.modules, "tensorrt", api)  # type: ignore[arg-type]
        return api

    def require_gpu(self) -> None:
        if not self.has_gpu:
            raise TypeError("factory function returned nullptr")

    def bound(self, kind: type[Behaviour]) -> type[Behaviour]:
        return type(kind.__name__, (kind,), {"fake": self})

    def make(self, kind: type[Behaviour], *args: Any) -> Behaviour:
        return self.bound(kind)(*args)


class Known(Behaviour):
    """A behaviour that knows its library."""

    fake: Library


class Builder(Known):
    error_recorder: Any = None

    def __init__(self, logger: Any) -> None:
        self.fake.require_gpu()

    def create_network(self) -> Behaviour:
        return self.fake.make(INetworkDefinition)

    def create_builder_config(self) -> Behaviour:
        config = self.fake.make(IBuilderConfig)
        assert isinstance(config, IBuilderConfig)
        self.fake.configs.append(config)
        return config

    def create_optimization_profile(self) -> Behaviour:
        return self.fake.make(IOptimizationProfile)

    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> HostMemory | None:
        monitor = config.progress_monitor
        monitor.phase_start("build", None, 2)
        monitor.phase_start("tactics", "build", 2)
        goes_on = monitor.step_complete("tactics", 0)
        monitor.phase_finish("tactics")
        monitor.phase_finish("build")
        if self.fake.builds and goes_on:
            return HostMemory(b"plan")
        code = self.fake.real.ErrorCodeTRT.INTERNAL_ERROR
        assert self.error_recorder.report_error(code, "no tactic for MatMul")
        return None


class INetworkDefinition(Known):
    pass


class IBuilderConfig(Known):
    def __init__(self) -> None:
        self.flags: list[Any] = []
        self.cleared: list[Any] = []
        self.workspace = 0
        self.profiles: list[Any] = []
        self.cache: ITimingCache | None = None
        self.progress_monitor: Any = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.workspace = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1 if self.fake.takes_profile else -1

    def create_timing_cache(self, content: bytes) -> Behaviour:
        return self.fake.make(ITimingCache, content)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return self.fake.takes_cache or not cache.content

    def get_timing_cache(self) -> ITimingCache | None:
        return self.cache


class ITimingCache(Known):
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> HostMemory:
        return HostMemory(self.content + b"+")


class IOptimizationProfile(Known):
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class OnnxParser(Known):
    num_errors = 1

    def __init__(self, network: Any, logger: Any) -> None: ...

    def parse(self, model: bytes, path: str) -> bool:
        self.fake.parsed.append((model, path))
        return self.fake.takes_graph

    def get_error(self, index: int) -> Behaviour:
        return self.fake.make(ParserError)


class ParserError(Known):
    def node_operator(self) -> str:
        return "Einsum"

    def node_name(self) -> str:
        return "mix"

    def desc(self) -> str:
        return "unsupported equation"


class Runtime(Known):
    error_recorder: Any = None
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self.fake.require_gpu()

    def deserialize_cuda_engine(self, content: Any) -> Behaviour | None:
        self.fake.host_code.append(self.engine_host_code_allowed)
        if self.fake.loads and bytes(content) == b"plan":
            return self.fake.make(ICudaEngine)
        code = self.fake.real.ErrorCodeTRT.UNSUPPORTED_STATE
        self.error_recorder.report_error(code, "built for another GPU")
        return None


class ICudaEngine(Known):
    num_io_tensors = 2

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.fake.bounds)

    def create_engine_inspector(self) -> Behaviour:
        return self.fake.make(EngineInspector)

    def get_engine_stat(self, stat: Any) -> int:
        assert stat == self.fake.real.EngineStat.STRIPPED_WEIGHTS_SIZE
        return 64 if self.fake.stripped else -1

    def get_tensor_name(self, index: int) -> str:
        return self.fake.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.fake.real.TensorIOMode
        return modes.INPUT if name == self.fake.names[0] else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.fake.real.DataType, self.fake.dtype)

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self.fake.host_names

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Any]:
        return [self.fake.real.Dims((rows, 4)) for rows in self.fake.bounds[profile]]

    def create_execution_context(self) -> Behaviour | None:
        return self.fake.make(IExecutionContext) if self.fake.has_memory else None


class EngineInspector(Known):
    def get_engine_information(self, format: Any) -> str:
        assert format == self.fake.real.LayerInformationFormat.JSON
        return '{"Layers": ["double"]}'


class IExecutionContext(Known):
    def __init__(self) -> None:
        self._shape = (0, 0)
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.fake.contexts.append(profile)
        return profile < len(self.fake.bounds)

    def set_communicator(self, communicator: Any) -> bool:
        self.fake.communicators.append(communicator)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, int]) -> bool:
        self._shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> Any:
        return self.fake.real.Dims(self._shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        addresses, shape = dict(self._addresses), self._shape

        def double() -> None:
            self.fake.executed += 1
            x, y = (_at(addresses[name], shape) for name in self.fake.names)
            y[:] = 2 * x

        assert self.fake.cuda
        self.fake.cuda.do(double)
        return self.fake.runs


class Refitter(Known):
    error_recorder: Any = None

    def __init__(self, engine: Any, logger: Any) -> None: ...

    def refit_cuda_engine(self) -> bool:
        return True


class OnnxParserRefitter(Known):
    def __init__(self, refitter: Any, logger: Any) -> None: ...

    def refit_from_file(self, path: str) -> bool:
        self.fake.refitted.append(path)
        return True


def _at(address: int, shape: tuple[int, int]) -> Array:
    """The float32 numbers that lie there."""
    count = shape[0] * shape[1]
    memory = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(memory, np.float32).reshape(shape)
