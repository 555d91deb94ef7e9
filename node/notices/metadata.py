"""Asking a provider's metadata service: plain HTTP on a link-local address, without proxies and redirects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from node.notices.seen import SourceTrouble

LINK_LOCAL_URL = "http://169.254.169.254"  # of AWS, GCP and Azure alike
ANSWER_BYTES_MAX = 256 << 10  # a document of scheduled events of a large scale set


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    text: str


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata service at `url`."""

    url: str = LINK_LOCAL_URL

    def ask(self, method: str, path: str, headers: Mapping[str, str], seconds_max: float) -> Answer:
        """One request on a connection of its own. Raises SourceTrouble when there is no whole answer in time."""
        parts = urlsplit(self.url)
        connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=seconds_max)
        try:
            connection.request(method, parts.path.rstrip("/") + path, headers=dict(headers))
            answer = connection.getresponse()
            body = answer.read(ANSWER_BYTES_MAX + 1)
            if len(body) > ANSWER_BYTES_MAX:
                raise SourceTrouble(f"{self.url}{path} answered with more than {ANSWER_BYTES_MAX} bytes")
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, body.decode(errors="replace"))
        except (OSError, HTTPException, ValueError) as problem:
            raise SourceTrouble(
                f"{self.url}{path} did not answer: {str(problem) or type(problem).__name__}"
            ) from problem
        finally:
            connection.close()
