"""mosec: mosec_app.py --address 127.0.0.1 --port PORT (WORKERS in the environment)"""

import os

from exported import Encoder
from mosec import Server, Worker


class Embed(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.encode = Encoder.of_environment()

    def deserialize(self, data: bytes) -> str:
        return data.decode()

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[str]) -> list[bytes]:
        return [row.tobytes() for row in self.encode(data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embed, num=int(os.environ["WORKERS"]), max_batch_size=32)
    server.run()
