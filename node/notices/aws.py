"""AWS: the instance metadata service, version 2, asked every five seconds.

`spot/instance-action` is 404 until two minutes before the end; a rebalance recommendation may come earlier, and says
that the end is likelier than before, not when. Every request carries a token, which is asked for with a PUT and lives
six hours; 401 means that it does not any more. See "Spot Instance interruption notices" and "EC2 instance rebalance
recommendations" in the EC2 user guide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from node.notices.metadata import Answer, Metadata
from node.notices.seen import Coming, Seen, SourceTrouble, read_time

TOKEN_SECONDS = 21_600  # the longest there is
ASK_SECONDS_MAX = 4.0  # a service that does not answer is asked again before the next five seconds are over
TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
ACTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
LIFE_PATH = "/latest/meta-data/instance-life-cycle"


@dataclass(slots=True)
class Aws:
    metadata: Metadata = field(default_factory=Metadata)
    interval_seconds: float = 5.0
    _token: str = ""
    _spot: str | None = None  # None: not asked yet

    def look(self) -> Seen:
        """Raises SourceTrouble."""
        if self._spot is None:
            life = self._get(LIFE_PATH)
            self._spot = "AWS calls it a spot instance" if life.status == 200 and life.text.strip() == "spot" else ""
        return Seen(self._action() or self._rebalance(), self._spot)

    def _action(self) -> Coming | None:
        found = self._read(ACTION_PATH)
        if found is None:
            return None
        action, at = found.get("action", "end"), read_time(str(found.get("time", "")))
        return Coming(at, f"AWS will {action} this instance at {found.get('time', 'an unknown time')}")

    def _rebalance(self) -> Coming | None:
        found = self._read(REBALANCE_PATH)
        return (
            None if found is None else Coming(None, "AWS recommends to rebalance: this instance may soon be taken away")
        )

    def _read(self, path: str) -> dict[str, object] | None:
        """The JSON object at a path, None when there is none."""
        answer = self._get(path)
        if answer.status == 404:
            return None
        try:
            found = json.loads(answer.text) if answer.status == 200 else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise SourceTrouble(f"AWS answered {answer.status} for {path}, which cannot be read")
        return found

    def _get(self, path: str) -> Answer:
        """With the token we have; with a new one when that is refused."""
        for _ in range(2):
            self._token = self._token or self._new_token()
            answer = self.metadata.ask("GET", path, {"X-aws-ec2-metadata-token": self._token}, ASK_SECONDS_MAX)
            if answer.status != 401:
                return answer
            self._token = ""
        raise SourceTrouble("AWS refuses the token it has just given")

    def _new_token(self) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        answer = self.metadata.ask("PUT", TOKEN_PATH, lifetime, ASK_SECONDS_MAX)
        if answer.status != 200 or not answer.text:
            raise SourceTrouble(f"AWS gave no token: it answered {answer.status}")
        return answer.text
