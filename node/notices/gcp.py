"""GCP: `instance/preempted` of the metadata server, by a request that is answered when the value changes.

TRUE comes with the ACPI signal, about 30 s before the end. A request waits for `timeout_sec` at most and names the last
ETag, so that no change between two requests is missed. 503 is said while the server is moved. See "View and query VM
metadata" and "Preemptible VM instances" in the Compute Engine documentation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from node.notices.metadata import Answer, Metadata
from node.notices.seen import Coming, Seen, SourceTrouble

NOTICE_SECONDS = 30.0
WAIT_SECONDS = 60  # that the server keeps one request
SLACK_SECONDS = 10.0  # and answers later than it should, at most
HEADERS = {"Metadata-Flavor": "Google"}
PREEMPTED_PATH = "/computeMetadata/v1/instance/preempted"
PREEMPTIBLE_PATH = "/computeMetadata/v1/instance/scheduling/preemptible"


@dataclass(slots=True)
class Gcp:
    metadata: Metadata = field(default_factory=Metadata)
    interval_seconds: float = 1.0  # between two requests, each of which waits by itself
    wait_seconds: int = WAIT_SECONDS
    clock: Callable[[], float] = time.time
    _etag: str = ""
    _spot: str | None = None  # None: not asked yet
    _at: float | None = None

    def look(self) -> Seen:
        """Waits for a change, a minute at most. Raises SourceTrouble."""
        if self._spot is None:
            preemptible = self._get(PREEMPTIBLE_PATH)
            self._spot = "GCP calls it preemptible" if preemptible.text.strip() == "TRUE" else ""
            return Seen(self._coming(self._get(PREEMPTED_PATH)), self._spot)
        wait = f"?wait_for_change=true&timeout_sec={self.wait_seconds}" + (
            f"&last_etag={self._etag}" * bool(self._etag)
        )
        return Seen(self._coming(self._get(PREEMPTED_PATH + wait)), self._spot)

    def _coming(self, answer: Answer) -> Coming | None:
        self._etag = answer.headers.get("etag", "")
        if answer.text.strip() != "TRUE":
            return None
        self._at = self._at or self.clock() + NOTICE_SECONDS
        return Coming(self._at, f"GCP preempts this instance: it ends in about {NOTICE_SECONDS:.0f} s")

    def _get(self, path: str) -> Answer:
        """Whoever answers without the flavour is not the metadata server."""
        answer = self.metadata.ask("GET", path, HEADERS, self.wait_seconds + SLACK_SECONDS)
        if answer.status != 200:
            raise SourceTrouble(f"GCP answered {answer.status} for {path.partition('?')[0]}")
        if answer.headers.get("metadata-flavor") != "Google":
            raise SourceTrouble(f"what answers at {self.metadata.url} is not the metadata server of GCP")
        return answer
