"""LitServe: litserve_app.py PORT, WORKERS in the environment"""

import os
import sys

import litserve
from exported import Encoder
from fastapi import Response


class Embed(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.encode = Encoder.of_environment()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[bytes]:
        return [row.tobytes() for row in self.encode(texts)]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    port, workers = int(sys.argv[1]), int(os.environ["WORKERS"])
    server = litserve.LitServer(
        Embed(max_batch_size=32), accelerator="cpu", workers_per_device=workers
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
