"""The side by side: servers are started, asked, judged and ended, whatever they do."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.peers import chart, known, peer_process, side_by_side, venv
from benchmarks.peers.peer import Packages, Peer, raw
from benchmarks.peers.side_by_side import COLUMNS, Texts
from clients.closed_loop import LoadError

SERVER = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np

class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        vector = np.array([len(text), int(sys.argv[2])], "<f4").tobytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(vector)))
        self.end_headers()
        self.wfile.write(vector)
    def log_message(self, *_):
        pass

subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
TEXTS = ["a", "bb", "a longer text"]
RIGHT = 3


def peer(name: str, program: str = SERVER, second: int = RIGHT, needs: str = "") -> Peer:
    packages = Packages(name, (needs,)) if needs else None
    return Peer(
        name, "none", packages, raw(), lambda at: ["-c", program, str(at.http), str(second)]
    )


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.array([[len(text), RIGHT] for text in TEXTS], np.float32)
    texts = Texts(TEXTS, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    monkeypatch.setattr(Texts, "usual", lambda: texts)
    monkeypatch.setattr(venv, "FOLDER", tmp_path)
    monkeypatch.setattr(known, "in_process", list)


@pytest.mark.campaign  # An environment takes pip a while.
@pytest.mark.usefixtures("places")
def test_each_peer_has_its_row_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    dies = peer("dies", "raise SystemExit(7)")
    missing = peer("not to be had", needs="/nowhere/package.whl")
    wrong_one = peer("wrong", second=-RIGHT)
    others = [peer("ours"), peer("second"), wrong_one, dies, missing]
    monkeypatch.setattr(known, "served", lambda: others)
    records = [*side_by_side.run([], turns=2, seconds=0.2)]
    assert [tuple(record) for record in records] == [COLUMNS] * 5
    ours, second, wrong, died, failed = records
    assert ours["cosine"] == pytest.approx(1)
    assert ours["ours: texts/s"] == ours["ours: p50"] == 1
    assert len(ours["turns"].split()) == 2
    assert second["ours: texts/s"] == pytest.approx(ours["texts/s"] / second["texts/s"])
    assert "not the checkpoint's: cosine" in wrong["turns"]
    assert "ended with 7" in died["turns"]
    assert "package.whl" in failed["turns"]
    left = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
    _, left = psutil.wait_procs(left, timeout=5)
    assert not left
    drawn = ET.fromstring(chart.svg(records))
    bars = [each for each in drawn.iter() if each.tag.endswith("rect")]
    assert len(bars) == 4, "two rows have figures, in two panels"


@pytest.mark.usefixtures("places")
def test_a_name_that_nobody_has_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "served", lambda: [peer("ours"), peer("other")])
    with pytest.raises(SystemExit, match="no peer is called nobody"):
        [*side_by_side.run(["nobody"], 1, 0.1)]


def test_an_answer_of_another_status_is_no_figure(tmp_path: Path) -> None:
    program = SERVER.replace(
        "self.send_response(200)", "self.send_response(500 if text == b'b' else 200)"
    )
    with (
        peer_process.started(peer("refuses", program), tmp_path / "log") as server,
        pytest.raises(LoadError, match="500"),
    ):
        server.load("HTTP", ["a", "b"], 2, 0.2)
