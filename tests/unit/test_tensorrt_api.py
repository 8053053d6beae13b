"""The tool that checks calls into TensorRT: it knows the real API, and lets nothing else pass."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from python_mp.errors import LoadError
from python_mp.rank.tensorrt_api import create
from tests.tensorrt_api.bindings import bindings
from tests.tensorrt_api.fake_library import Builder, Library
from tests.tensorrt_api.fakes import Api, Behaviour, check_overrides
from tests.tensorrt_api.lines import unreached
from tests.tensorrt_api.signatures import overloads


@pytest.fixture
def builder() -> Any:
    library = Library(bindings())
    api = Api(library.real, library.bound(Builder))
    return api.Builder(library.real.Logger())


def test_bindings_are_those_of_the_release_we_write_for() -> None:
    assert bindings().__version__.startswith("11.4.")
    assert "tensorrt" not in sys.modules


@pytest.mark.skipif(torch.cuda.is_available(), reason="TensorRT may be able to, with a GPU")
@pytest.mark.parametrize("name", ["Builder", "Runtime"])
def test_without_a_gpu_the_bindings_raise_what_we_translate(name: str) -> None:
    trt = bindings()
    with pytest.raises(LoadError, match="finds no GPU"):
        create(getattr(trt, name), trt.Logger())


def test_calls_that_exist_pass(builder: Any) -> None:
    trt, config = bindings(), builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    config.set_flag(flag=trt.BuilderFlag.REFIT)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 20)
    assert config.set_timing_cache(config.create_timing_cache(b""), False)
    assert builder.create_network() is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda builder: builder.create_netwrok(), "Builder has no create_netwrok"),
        (lambda builder: builder.platform_has_fast_fp16, "Builder has no platform_has_fast_fp16"),
        (lambda builder: builder.build_engine(1), "Builder has no build_engine"),
        (lambda builder: builder.create_builder_config().max_workspace_size, "has no max_work"),
    ],
)
def test_what_is_misspelt_or_gone_fails(call: Any, message: str, builder: Any) -> None:
    with pytest.raises(AttributeError, match=message):
        call(builder)


@pytest.mark.parametrize(
    "call",
    [
        lambda builder, config: builder.create_builder_config(1),
        lambda builder, config: builder.create_network(flag=0),
        lambda builder, config: config.set_flag("REFIT"),
        lambda builder, config: config.set_flag(1 << 3),
        lambda builder, config: config.set_memory_pool_limit(1 << 20, 1 << 20),
        lambda builder, config: config.set_timing_cache(config.create_timing_cache(b"")),
        lambda builder, config: config.create_timing_cache(None),
        lambda builder, config: builder.build_serialized_network(config, config),
        lambda builder, config: setattr(config, "builder_optimization_level", "3"),
        lambda builder, config: setattr(config, "progress_monitor", object()),
    ],
)
def test_arguments_of_another_number_name_or_type_fail(call: Any, builder: Any) -> None:
    with pytest.raises(TypeError, match="TensorRT's .* takes .*; it was given"):
        call(builder, builder.create_builder_config())


def test_what_cannot_be_set_fails(builder: Any) -> None:
    for name in ("num_DLA_cores", "create_network"):
        with pytest.raises(AttributeError, match=f"{name} cannot be set"):
            setattr(builder, name, 1)


def test_members_of_the_module_must_exist() -> None:
    api = Api(bindings())
    with pytest.raises(AttributeError, match="FP16"):
        _ = api.BuilderFlag.FP16
    with pytest.raises(AttributeError, match="IInt8EntropyCalibrator2"):
        _ = api.IInt8EntropyCalibrator2
    with pytest.raises(AssertionError, match="no Runtime"):
        _ = api.Runtime


def test_a_constructor_is_checked() -> None:
    api = Api(bindings(), Library(bindings()).bound(Builder))
    with pytest.raises(TypeError, match="Builder takes"):
        api.Builder()


def test_a_fake_must_answer_with_the_documented_type() -> None:
    class Builder(Behaviour):
        def create_network(self) -> int:
            return 3

        def __init__(self, logger: Any) -> None: ...

    builder = Api(bindings(), Builder).Builder(bindings().Logger())
    with pytest.raises(AssertionError, match="returns INetworkDefinition"):
        builder.create_network()


def test_interfaces_must_be_implemented_whole() -> None:
    base = bindings().IProgressMonitor

    class Less(base):
        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

    class Other(Less):
        def phase_start(self, phase_name: str) -> None: ...  # type: ignore[override]
        def step_complete(self, phase_name: str, step: int) -> bool: ...
        def phase_finish(self, phase_name: str) -> None: ...

    with pytest.raises(AssertionError, match="phase_finish"):
        check_overrides(base, Less)
    with pytest.raises(AssertionError, match="phase_start takes"):
        check_overrides(base, Other)


def test_signatures_are_read_from_docstrings() -> None:
    def function() -> None:
        """f(*args, **kwargs)
        Overloaded function.

        1. f(self: typing.Any, a: collections.abc.Sequence[typing.SupportsInt], b: str = None) -> X

        2. f(self: typing.Any, arg0: nvinfer1::Y = <Y.Z: 0>) -> list[int]
        """

    function.__doc__ = inspect.cleandoc(function.__doc__ or "")
    first, second = overloads(function)
    assert str(first.signature) == "(a: 'Sequence[SupportsInt]', b: 'str' = 'None')"
    assert first.returns == "X"
    assert str(second.signature) == "(arg0: 'Y' = '<Y.Z: 0>', /)"
    assert second.returns == "list[int]"


def test_every_class_we_stand_in_for_documents_its_calls() -> None:
    """A call without a readable signature would be refused whatever it is given; so none may be."""
    trt = bindings()
    for kind in (trt.Builder, trt.IBuilderConfig, trt.Runtime, trt.ICudaEngine, trt.Refitter):
        for name, member in vars(kind).items():
            if not name.startswith("_") and not isinstance(member, property):
                assert overloads(getattr(kind, name)), f"{kind.__name__}.{name}"


def test_unreached_lines_are_found(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "def f(x):\n    if x:\n        return 1\n    return 2\n\n\nclass C:\n    y = 1\n"
    )
    module: Any = type(sys)("module")
    module.__file__ = str(source)
    exec(compile(source.read_text(), str(source), "exec"), vars(module))
    assert unreached(lambda: module.f(1), module) == ["module.py:4: return 2"]
