"""A live Prometheus with the project's configuration, told where its targets are in a test."""

from __future__ import annotations

import json
import math
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.endpoints import Endpoints
from server.process.installation import PROJECT
from tests.support.processes import until

FOLDER = PROJECT / "deploy" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Series = list[tuple[dict[str, str], float]]


@dataclass(frozen=True)
class Api:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """What it answers; an error it has is an AssertionError."""
        query = urllib.parse.urlencode(parameters)
        try:
            with _OPENER.open(f"{self.url}/api/v1/{path}?{query}", timeout=5.0) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from error

    def query(self, expression: str) -> Series:
        """Labels and value of each series that is finite now."""
        found = self.get("query", query=expression)["result"]
        series = [(each["metric"], float(each["value"][1])) for each in found]
        return [each for each in series if math.isfinite(each[1])]

    def is_ready(self) -> bool:
        with suppress(OSError):
            return bool(_OPENER.open(f"{self.url}/-/ready", timeout=1.0).status == 200)
        return False


@contextmanager
def prometheus(binary: str, folder: Path, targets: Mapping[str, str]) -> Iterator[Api]:
    """Scrapes every second.

    Args:
        targets: host:port of each job; other jobs are left out.
    """
    address = f"127.0.0.1:{Endpoints.free().http}"
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] |= dict.fromkeys(
        (n for n in config["global"] if n.endswith(("interval", "timeout"))), "1s"
    )
    config["rule_files"] = [str(file) for file in RULES]
    jobs = [job for job in config["scrape_configs"] if job["job_name"] in targets]
    for job in jobs:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump({**config, "scrape_configs": jobs}))
    options = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([binary, *options], stdout=log, stderr=log)
    api = Api(f"http://{address}")
    try:
        until(lambda: api.is_ready() or process.poll() is not None)
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield api
    finally:
        process.terminate()
        process.wait(20.0)
