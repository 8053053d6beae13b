"""Where these names were; see configs, processes and replicas."""

from tests.support.configs import FP32, INT32, echo_config, model_config, tensor
from tests.support.processes import alive, children, rank_processes, until
from tests.support.replicas import (
    LIMIT,
    NO_FAULT,
    Array,
    Fault,
    FutureAnswer,
    Served,
    ask,
    counted,
    echo_input,
    lone_rank,
    pids,
    served,
    values,
)

# fmt: off
__all__ = [
    "FP32", "INT32", "LIMIT", "NO_FAULT", "Array", "Fault", "FutureAnswer", "Served", "alive",
    "ask", "children", "counted", "echo_config", "echo_input", "lone_rank", "model_config", "pids",
    "rank_processes", "served", "tensor", "until", "values",
]
