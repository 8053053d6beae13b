"""The gateway before a stand-in of Triton, both in a thread of this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import grpc
import openai
import uvicorn
from tritonclient.grpc import service_pb2_grpc

from gateway.app import create
from tests.support.stand_in_triton import StandIn

LIMIT = 30.0


@dataclass(frozen=True)
class Gateway:
    """`loop` runs both."""

    triton: StandIn
    url: str
    loop: asyncio.AbstractEventLoop
    stop_triton: Callable[[], Coroutine[Any, Any, None]]

    def client(self, key: str = "none") -> openai.OpenAI:
        http = openai.DefaultHttpxClient(trust_env=False, timeout=LIMIT)
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=http
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers; bytes go as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(f"{self.url}{path}", data, {"content-type": "application/json"} | headers)
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=LIMIT) as answer:
                return answer.status, json.load(answer), dict(answer.headers)
        except HTTPError as error:
            with error:
                return error.code, json.load(error), dict(error.headers)


@contextmanager
def gateway(url: str | None = None, **settings: Any) -> Iterator[Gateway]:
    """Before Triton at that host:port, or else the stand-in; takes the arguments of `create`."""
    ended: asyncio.Queue[Any] = asyncio.Queue()
    found: list[Gateway] = []
    ready, failed = threading.Event(), list[BaseException]()

    async def serve() -> None:
        triton, stand_in = grpc.aio.server(), StandIn()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, triton)
        port = triton.add_insecure_port("127.0.0.1:0")
        await triton.start()
        app = create(url or f"127.0.0.1:{port}", **settings)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
        running = asyncio.create_task(server.serve())
        while not server.started:
            if running.done():
                await running
            await asyncio.sleep(0.01)

        async def stop_triton() -> None:
            await triton.stop(None)

        here = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        found.append(Gateway(stand_in, here, asyncio.get_running_loop(), stop_triton))
        ready.set()
        await ended.get()
        stand_in.is_frozen = stand_in.is_mute = False  # So that what waits for it comes to an end.
        server.should_exit = True
        await running
        await stop_triton()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(LIMIT)
    try:
        if found:
            yield found[0]
    finally:
        if found and not failed:
            found[0].loop.call_soon_threadsafe(ended.put_nowait, None)
        thread.join(LIMIT)
    if failed:
        raise failed[0]
