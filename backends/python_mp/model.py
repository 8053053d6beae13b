"""Triton's entry to python_mp, in the stub of every instance, active or passive.

An active instance leads a replica: it starts the replica's ranks and answers requests. A passive
one only lends its cores or device. Nothing here may crash, since Triton never restarts a stub.
"""

import contextlib
import logging
import os
from threading import Lock

import triton_python_backend_utils as pb_utils

from python_mp.front.metrics import Metrics
from python_mp.front.place import cores
from python_mp.front.place.presence import Presence, runtime_folder
from python_mp.front.replica import Replica
from python_mp.model import ensembles, layout, manifest
from python_mp.model.batch import read_request
from python_mp.model.errors import PythonMpError, RequestFailed, describe, for_clients

log = logging.getLogger("python_mp")

WINDOW_SECONDS = 0.010
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """What the Python backend calls: initialize, execute, finalize."""

    def initialize(self, args):
        _log_to_triton()
        try:
            self._initialize(args)
        except PythonMpError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        except Exception as error:  # No descriptor, no memory, no thread: the text is what is seen.
            log.exception("a load failed")
            raise pb_utils.TritonModelException(f"it cannot be loaded: {describe(error)}") from None

    def _initialize(self, args):
        self._replica = None
        self._config = manifest.configured(
            args["model_config"], args["model_repository"], args["model_version"]
        )
        self._input_names = [spec.name for spec in self._config.inputs]
        on_gpu = args["model_instance_kind"] == "GPU"
        device = int(args["model_instance_device_id"]) if on_gpu else layout.CPU
        self._instance = layout.Instance(args["model_instance_name"], device)
        replicas = layout.replicas(layout.including(self._config, self._instance))
        runtime = runtime_folder()
        self._presence = Presence(runtime, self._config)
        self._presence.announce(self._instance)
        mine = next((each for each in replicas if each.leader == self._instance), None)
        if mine is None:
            return
        everyone = [rank.instance for replica in replicas for rank in replica.ranks]
        shares = cores.share(self._presence.gather(everyone))
        first = mine.index * self._config.world_size
        built = manifest.admit(self._config)
        ensembles.admit(self._config.folder, built and built.source.get("tokenizer"))
        self._sink = TritonSink()
        self._metrics = Metrics(
            self._sink,
            {
                "model": self._config.name,
                "version": str(self._config.version),
                "replica": str(mine.index),
            },
        )
        self._replica = Replica(
            self._config,
            mine,
            shares[first : first + self._config.world_size],
            runtime,
            self._metrics,
            server=os.getppid(),
        )
        self._replica.start()
        self._metrics.start()

    def execute(self, requests):
        """Queues the requests. Those answered at once are returned, the others answer later, from
        the replica's thread, so that Triton can hand over the next ones."""
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

    def _read(self, answer):
        tensors = {
            name: tensor.as_numpy()
            for name in self._input_names
            if (tensor := pb_utils.get_input_tensor_by_name(answer.request, name)) is not None
        }
        request = read_request(tensors, self._config, answer)
        if timeout := answer.request.timeout():  # The client's own, in microseconds.
            request.deadline = min(request.deadline, request.arrived + timeout / 1e6)
        return request

    def is_ready(self):
        """Triton 26.03 and later ask; older ones believe in a model for ever."""
        return self._replica is None or self._replica.serves

    def finalize(self):
        self._presence.withdraw(self._instance)
        if self._replica:
            self._replica.stop()
            self._metrics.stop()
            self._sink.clear()


class Window:
    """Collects the answers that come while `execute` waits. One return carries them all to Triton,
    where a response sender takes four thread hops for each."""

    def __init__(self, requests):
        self.answers = [TritonAnswer(self, request) for request in requests]
        self._missing = len(requests)
        self._lock = Lock()

    def collect(self, answer, response):
        with self._lock:
            if answer.sender is None:
                answer.response = response
                self._missing -= 1
                return
        with answer.lock:
            answer.sender.send(response, flags=FINAL)
            answer.sent = True

    def is_complete(self):
        return not self._missing

    def close(self):
        """The responses so far, None for those that will come through their sender."""
        with self._lock:
            for answer in self.answers:
                if answer.response is None:
                    answer.sender = answer.request.get_response_sender()
        return [answer.response for answer in self.answers]


class TritonAnswer:
    """The way back for one request; holding the request keeps its tensors alive."""

    def __init__(self, window, request):
        self.request = request
        self.response = None
        self.sender = None
        self.sent = False
        self.lock = Lock()
        self._window = window

    @property
    def keeps(self):
        """A Tensor is a view. What `execute` returns is read after that, a sender reads at once."""
        return self.sender is None

    def send(self, outputs):
        tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        self._window.collect(self, pb_utils.InferenceResponse(tensors))

    def fail(self, error):
        code = getattr(pb_utils.TritonError, error.status)
        failure = pb_utils.TritonError(for_clients(error), code)
        self._window.collect(self, pb_utils.InferenceResponse(error=failure))

    def is_cancelled(self):
        # After the last response Triton's side of the sender is gone: asking it then is a crash.
        with self.lock:
            return self.sender is not None and not self.sent and self.sender.is_cancelled()


class TritonSink:
    """Triton's metric families, kept because a metric is gone with its family."""

    def __init__(self):
        self._families = {}
        self._metrics = {}

    def add(self, kind, name, help, labels, value):
        key = name, tuple(labels.items())
        if key not in self._metrics:
            self._metrics[key] = self._family(kind, name, help).Metric(labels=labels)
        metric = self._metrics[key]
        metric.set(value) if kind == "GAUGE" else metric.increment(value)

    def clear(self):
        """Else the series of a version that was replaced stay on /metrics, and in memory."""
        self._metrics.clear()
        self._families.clear()

    def _family(self, kind, name, help):
        if name not in self._families:
            self._families[name] = pb_utils.MetricFamily(
                name=name, description=help, kind=getattr(pb_utils.MetricFamily, kind)
            )
        return self._families[name]


class TritonLogHandler(logging.Handler):
    def emit(self, record):
        write = pb_utils.Logger.log_info
        if record.levelno >= logging.ERROR:
            write = pb_utils.Logger.log_error
        elif record.levelno >= logging.WARNING:
            write = pb_utils.Logger.log_warn
        with contextlib.suppress(Exception):  # Nobody stops serving for a line.
            write(self.format(record))


def _log_to_triton():
    logger = logging.getLogger("python_mp")
    logger.setLevel(logging.INFO)
    logger.handlers = [TritonLogHandler()]
