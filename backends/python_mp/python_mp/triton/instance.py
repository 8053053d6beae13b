"""One instance of a model, in the stub that Triton has started for it.

An active instance leads a replica: it starts the replica's ranks and answers requests. A passive
one only lends its cores or device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ..front.metrics import Metrics
from ..front.place import cores
from ..front.place.presence import Presence, runtime_folder
from ..front.replica import Replica
from ..model import admission, ensembles, layout, manifest
from ..model.config import ModelConfig
from ..model.errors import PythonMpError, RequestFailed, describe
from ..model.request import Request, read_request
from .answers import TritonAnswer, Window, input_tensors
from .metric_sink import TritonSink
from .stream_answers import Streams

log = logging.getLogger("python_mp")

WINDOW_SECONDS = 0.010


def load(args: Mapping[str, str]) -> Passive:
    """What `initialize` is given becomes an instance that serves.

    Raises:
        TritonModelException: it cannot; the text says why.
    """
    try:
        return _load(args)
    except PythonMpError as error:
        raise pb_utils.TritonModelException(str(error)) from None
    except Exception as error:  # No descriptor, no memory, no thread: the text is what is seen.
        log.exception("a load failed")
        raise pb_utils.TritonModelException(f"it cannot be loaded: {describe(error)}") from None


def _load(args: Mapping[str, str]) -> Passive:
    config = manifest.configured(
        args["model_config"], args["model_repository"], args["model_version"]
    )
    on_gpu = args["model_instance_kind"] == "GPU"
    device = int(args["model_instance_device_id"]) if on_gpu else layout.CPU
    instance = layout.Instance(args["model_instance_name"], device)
    replicas = layout.replicas(layout.including(config, instance))
    runtime = runtime_folder()
    presence = Presence(runtime, config)
    presence.announce(instance)
    mine = next((each for each in replicas if each.leader == instance), None)
    if mine is None:
        return Passive(instance, presence)
    everyone = [rank.instance for replica in replicas for rank in replica.here]
    shares = cores.share(presence.gather(everyone))
    first = mine.index * config.ranks_per_host
    ensembles.admit(config.folder, admission.admit(config))
    cpus = shares[first : first + config.ranks_per_host]
    return Active(config, mine, cpus, runtime, instance, presence)


class Passive:
    """Is never asked anything."""

    serves = True

    def __init__(self, instance: layout.Instance, presence: Presence) -> None:
        self._instance = instance
        self._presence = presence

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        raise pb_utils.TritonModelException("a passive instance serves no requests")

    def stop(self) -> None:
        self._presence.withdraw(self._instance)


class Active(Passive):
    """Made when its ranks serve.

    Args:
        cpus: the cores of each rank.
        runtime: a private folder.
    """

    def __init__(
        self,
        config: ModelConfig,
        mine: layout.ReplicaLayout,
        cpus: list[cores.CpuSet],
        runtime: Path,
        instance: layout.Instance,
        presence: Presence,
    ) -> None:
        super().__init__(instance, presence)
        self._config = config
        self._sink = TritonSink()
        labels = {"model": config.name, "version": str(config.version), "replica": str(mine.index)}
        generates = config.parameters.generates
        self._metrics = Metrics(self._sink, labels, streams=generates)
        self._replica = Replica(config, mine, cpus, runtime, self._metrics, server=os.getppid())
        self._streams: Streams | None = None
        self._replica.start()
        if generates:
            self._streams = Streams(config, self._replica.submit, runtime, self._metrics.net)
        self._metrics.start()

    @property
    def serves(self) -> bool:  # type: ignore[override]
        return self._replica.serves

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Queues the requests. Those answered at once are returned, the others answer later, from
        the replica's thread, so that Triton can hand over the next ones. A decoupled model returns
        nothing."""
        if self._streams:
            self._streams.take(requests)
            return None
        window = Window(requests)
        accepted = []
        for answer in window.answers:
            try:
                accepted.append(self._read(answer))
            except PythonMpError as error:
                answer.fail(error)
            except Exception:  # Raised from here it would fail the others of this call as well.
                log.exception("a request could not be read")
                answer.fail(RequestFailed("the request could not be read"))
        try:
            self._replica.submit_and_attend(accepted, window.is_complete, WINDOW_SECONDS)
        except Exception:  # They are in hand, and answered through their senders.
            log.exception("requests could not be attended to")
        return window.close()

    def _read(self, answer: TritonAnswer) -> Request:
        tensors = input_tensors(answer.request, self._config)
        request = read_request(tensors, self._config, answer)
        if timeout := answer.request.timeout():  # The client's own, in microseconds.
            request.deadline = min(request.deadline, request.arrived + timeout / 1e6)
        return request

    def stop(self) -> None:
        super().stop()
        self._replica.stop()
        if self._streams:
            self._streams.stop()
        self._metrics.stop()
        self._sink.clear()
