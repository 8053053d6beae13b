"""Ray Serve: ray_app.py PORT, WORKERS in the environment"""

import os
import signal
import sys

import ray
from exported import Encoder
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})
class Embed:
    def __init__(self) -> None:
        self.encoder = Encoder.of_environment()

    @serve.batch(max_batch_size=32)
    async def encode(self, texts: list[str]) -> list[bytes]:
        return [row.tobytes() for row in self.encoder(texts)]

    async def __call__(self, request: Request) -> Response:
        text = (await request.body()).decode()
        return Response(await self.encode(text), media_type="application/octet-stream")


if __name__ == "__main__":
    port, workers = int(sys.argv[1]), int(os.environ["WORKERS"])
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Embed.options(num_replicas=workers).bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
