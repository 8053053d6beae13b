"""Triton's entry to python_mp. One of these runs in the stub of every instance, active or passive.

An active instance leads a replica: it starts the replica's ranks and answers requests. A passive one
only lends its cores or device. Nothing here may crash, since Triton never restarts a stub.
"""

import logging

import triton_python_backend_utils as pb_utils
from python_mp import config as configuration
from python_mp import layout
from python_mp.batch import read_request
from python_mp.errors import PythonMpError
from python_mp.front import cores
from python_mp.front.metrics import Metrics
from python_mp.front.presence import Presence, runtime_folder
from python_mp.front.replica import Replica

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """What the Python backend calls: initialize, execute, finalize."""

    def initialize(self, args):
        _log_to_triton()
        try:
            self._initialize(args)
        except PythonMpError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def _initialize(self, args):
        self._replica = None
        self._config = configuration.parse(
            args["model_config"], args["model_repository"], args["model_version"]
        )
        replicas = layout.replicas(self._config)
        on_gpu = args["model_instance_kind"] == "GPU"
        device = int(args["model_instance_device_id"]) if on_gpu else layout.CPU
        self._instance = layout.Instance(args["model_instance_name"], device)
        runtime = runtime_folder()
        self._presence = Presence(runtime, self._config)
        self._presence.announce(self._instance)
        mine = next((each for each in replicas if each.leader == self._instance), None)
        if mine is None:
            return
        everyone = [rank.instance for replica in replicas for rank in replica.ranks]
        shares = cores.share(self._presence.gather(everyone))
        first = mine.index * self._config.world_size
        self._metrics = Metrics(
            TritonSink(),
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
        )
        self._replica.start()
        self._metrics.start()

    def execute(self, requests):
        """Queues the requests and returns at once; the replica's thread answers."""
        accepted = []
        for request in requests:
            answer = TritonAnswer(request)
            inputs = {
                spec.name: tensor.as_numpy()
                for spec in self._config.inputs
                if (tensor := pb_utils.get_input_tensor_by_name(request, spec.name)) is not None
            }
            try:
                accepted.append(read_request(inputs, self._config, answer))
            except PythonMpError as error:
                answer.fail(error)
        self._replica.submit(accepted)

    def finalize(self):
        self._presence.withdraw(self._instance)
        if self._replica:
            self._replica.stop()
            self._metrics.stop()


class TritonAnswer:
    """Sends through the request's response sender; holding the request keeps its tensors alive."""

    def __init__(self, request):
        self._request = request
        self._sender = request.get_response_sender()

    def send(self, outputs):
        tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        self._sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)

    def fail(self, error):
        code = getattr(pb_utils.TritonError, error.status)
        failure = pb_utils.TritonError(str(error), code)
        self._sender.send(pb_utils.InferenceResponse(error=failure), flags=FINAL)


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
        write(self.format(record))


def _log_to_triton():
    logger = logging.getLogger("python_mp")
    logger.setLevel(logging.INFO)
    logger.handlers = [TritonLogHandler()]
