"""Small faithful servers of the metadata services of AWS, GCP and Azure, on loopback.

They insist on what the real ones insist on: methods, headers, tokens, API versions; and they are late, wrong or gone
when a test says so. `asked` lists every request.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

LONG_SECONDS = 30.0  # no request of a test is kept for longer


class Service:
    """What all three share: paths with values, delays, failures."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.delay_seconds = 0.0
        self.broken = 0  # so many requests are answered with 503
        self.changed = threading.Condition()

    def put(self, path: str, value: str | None) -> None:
        with self.changed:
            if value is None:
                self.values.pop(path, None)
            else:
                self.values[path] = value
            self.changed.notify_all()

    def count(self, path: str) -> int:
        return sum(path in asked for _, asked in self.asked)

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
        raise NotImplementedError


class AwsService(Service):
    """IMDSv2: a token by PUT, which every GET carries; what is not there is 404."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, float] = {}
        self.values["/latest/meta-data/instance-life-cycle"] = "spot"

    def expire_tokens(self) -> None:
        self.tokens.clear()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
        if path == "/latest/api/token":
            return self._token(method, headers)
        if method != "GET":
            return 405, {}, "405 - Method Not Allowed"
        if headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            return 401, {}, "401 - Unauthorized"
        if path not in self.values:
            return 404, {"content-type": "text/html"}, "<html><title>404 - Not Found</title></html>"
        return 200, {"content-type": "text/plain"}, self.values[path]

    def _token(self, method: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
        lifetime = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if method != "PUT" or not lifetime.isdigit() or not 1 <= int(lifetime) <= 21_600:
            return 400, {}, "400 - Bad Request"
        token = f"token-{len(self.asked)}"
        self.tokens[token] = time.monotonic() + int(lifetime)
        return 200, {"x-aws-ec2-metadata-token-ttl-seconds": lifetime}, token


class GcpService(Service):
    """Answers when the value is no longer that of `last_etag`, or when `timeout_sec` is over."""

    def __init__(self) -> None:
        super().__init__()
        self.flavour = "Google"
        self.values["/computeMetadata/v1/instance/preempted"] = "FALSE"
        self.values["/computeMetadata/v1/instance/scheduling/preemptible"] = "TRUE"

    def etag(self, path: str) -> str:
        return f"{hash((path, self.values.get(path))) & 0xFFFFFFFF:x}"

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
        if headers.get("metadata-flavor") != "Google":
            return 403, {}, "Missing required header: Metadata-Flavor"
        place, _, query = path.partition("?")
        asked = parse_qs(query)
        if place not in self.values:
            return 404, {"metadata-flavor": self.flavour}, "not found"
        if asked.get("wait_for_change") == ["true"]:
            self._wait(place, asked)
        return 200, {"metadata-flavor": self.flavour, "etag": self.etag(place)}, self.values[place]

    def _wait(self, place: str, asked: dict[str, list[str]]) -> None:
        known = asked.get("last_etag", [self.etag(place)])[0]
        seconds = float(asked.get("timeout_sec", [str(LONG_SECONDS)])[0])
        with self.changed:
            self.changed.wait_for(lambda: self.etag(place) != known, min(seconds, LONG_SECONDS))


class AzureService(Service):
    """Wants `Metadata: true` and a version; the first question about events takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.first_seconds = 0.0
        self.events: list[dict[str, object]] = []
        self.values["/metadata/instance/compute/name"] = "gpu_7"
        self.values["/metadata/instance/compute/priority"] = "Spot"

    def preempt(self, *resources: str, not_before: str, **facts: object) -> None:
        event = {"EventId": "A1", "EventType": "Preempt", "EventStatus": "Scheduled", "ResourceType": "VirtualMachine"}
        self.events.append({**event, "Resources": list(resources), "NotBefore": not_before, **facts})

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
        place, asked = urlsplit(path).path, parse_qs(urlsplit(path).query)
        if headers.get("metadata") != "true" or "api-version" not in asked:
            return 400, {}, '{"error": "Bad request. Required metadata header or api-version not specified"}'
        if place == "/metadata/scheduledevents":
            if self.count("scheduledevents") == 1:
                time.sleep(self.first_seconds)
            return 200, {}, json.dumps({"DocumentIncarnation": len(self.events), "Events": self.events})
        if place not in self.values or asked.get("format") != ["text"]:
            return 404, {}, "{}"
        return 200, {}, self.values[place]


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The service on a port of loopback; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            service.asked.append((self.command, self.path))
            time.sleep(service.delay_seconds)
            if service.broken > 0:
                service.broken -= 1
                status, headers, body = 503, {}, "unavailable"
            else:
                names = {name.lower(): value for name, value in self.headers.items()}
                status, headers, body = service.answer(self.command, self.path, names)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = handle_one

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests look at `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        service.put("", "")  # whoever waits for a change is let go
        server.shutdown()
        server.server_close()
