"""Notices of the end: each provider's service is asked as it wants to be, and what it says becomes one value."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.notices import watching
from node.notices.aws import Aws
from node.notices.azure import Azure
from node.notices.detection import AZURE_CHASSIS_TAG, Machine, detect
from node.notices.ending import Ending
from node.notices.gcp import Gcp
from node.notices.hooks import CommandHook, FileHook
from node.notices.metadata import Metadata
from node.notices.seen import Coming, Seen, SourceTrouble, read_time
from node.notices.watching import Watching, notice_seconds, sources_for
from protocol.effects import Report
from tests.metadata_servers import AwsService, AzureService, GcpService, serving

ACTION, REBALANCE = "/latest/meta-data/spot/instance-action", "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
NOON = 1_790_000_000.0  # a moment in 2026


# --- AWS ---


@pytest.fixture
def aws() -> Iterator[tuple[AwsService, Aws]]:
    service = AwsService()
    with serving(service) as url:
        yield service, Aws(Metadata(url))


def test_aws_says_nothing_until_there_is_something_to_say(aws: tuple[AwsService, Aws]) -> None:
    _, source = aws
    assert source.look() == Seen(None, "AWS calls it a spot instance")


def test_aws_names_the_action_and_its_time(aws: tuple[AwsService, Aws]) -> None:
    service, source = aws
    service.put(ACTION, '{"action": "terminate", "time": "2026-09-21T14:13:20Z"}')
    seen = source.look().coming
    assert seen == Coming(NOON, "AWS will terminate this instance at 2026-09-21T14:13:20Z")


def test_a_rebalance_recommendation_of_aws_has_no_time(aws: tuple[AwsService, Aws]) -> None:
    service, source = aws
    service.put(REBALANCE, '{"noticeTime": "2026-09-21T14:13:20Z"}')
    seen = source.look().coming
    assert seen is not None
    assert seen.at is None


def test_one_token_of_aws_serves_many_questions_and_a_refused_one_is_replaced(aws: tuple[AwsService, Aws]) -> None:
    service, source = aws
    for _ in range(3):
        source.look()
    assert service.count("/latest/api/token") == 1
    service.expire_tokens()
    source.look()
    assert service.count("/latest/api/token") == 2
    assert {method for method, path in service.asked if path.endswith("token")} == {"PUT"}


def test_an_instance_of_aws_that_is_no_spot_one_is_not_called_one(aws: tuple[AwsService, Aws]) -> None:
    service, source = aws
    service.put("/latest/meta-data/instance-life-cycle", "on-demand")
    assert source.look().spot == ""


@pytest.mark.parametrize("text", ["<html>", "[]", '"x"', ""])
def test_what_aws_says_unreadably_is_trouble_and_no_notice(aws: tuple[AwsService, Aws], text: str) -> None:
    service, source = aws
    service.put(ACTION, text)
    with pytest.raises(SourceTrouble, match="cannot be read"):
        source.look()


def test_a_service_that_fails_or_is_gone_is_trouble() -> None:
    service = AwsService()
    with serving(service) as url:
        source = Aws(Metadata(url))
        service.broken = 1
        with pytest.raises(SourceTrouble, match="503"):
            source.look()
        assert source.look().coming is None
    with pytest.raises(SourceTrouble, match="did not answer"):
        source.look()


def test_a_service_that_is_slow_is_trouble_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.notices.aws.ASK_SECONDS_MAX", 0.2)
    service = AwsService()
    service.delay_seconds = 3.0
    with serving(service) as url:
        began = time.monotonic()
        with pytest.raises(SourceTrouble, match="timed out"):
            Aws(Metadata(url)).look()
        assert time.monotonic() - began < 2.0


# --- GCP ---


@pytest.fixture
def gcp() -> Iterator[tuple[GcpService, Gcp]]:
    service = GcpService()
    with serving(service) as url:
        yield service, Gcp(Metadata(url), wait_seconds=20, clock=lambda: NOON)


def test_gcp_answers_at_once_when_first_asked(gcp: tuple[GcpService, Gcp]) -> None:
    _, source = gcp
    assert source.look() == Seen(None, "GCP calls it preemptible")


def test_gcp_is_waited_for_until_it_changes(gcp: tuple[GcpService, Gcp]) -> None:
    service, source = gcp
    source.look()
    threading.Timer(0.3, service.put, (PREEMPTED, "TRUE")).start()
    began = time.monotonic()
    coming = source.look().coming
    assert coming is not None
    assert coming.at == NOON + 30
    assert 0.2 < time.monotonic() - began < 15
    _, path = service.asked[-1]
    assert "wait_for_change=true" in path
    assert f"last_etag={service.etag(PREEMPTED)}" not in path  # it named the one before


def test_a_change_of_gcp_between_two_questions_is_not_missed(gcp: tuple[GcpService, Gcp]) -> None:
    service, source = gcp
    source.look()
    service.put(PREEMPTED, "TRUE")
    assert source.look().coming is not None


def test_the_end_does_not_move_when_gcp_repeats_itself(gcp: tuple[GcpService, Gcp]) -> None:
    service, source = gcp
    service.put(PREEMPTED, "TRUE")
    first = source.look().coming
    source.clock = lambda: NOON + 7
    source.wait_seconds = 1
    assert source.look().coming == first


def test_a_wait_without_change_ends_and_says_nothing(gcp: tuple[GcpService, Gcp]) -> None:
    _, source = gcp
    source.look()
    source.wait_seconds = 1
    assert source.look().coming is None


def test_who_answers_without_the_flavour_is_not_gcp(gcp: tuple[GcpService, Gcp]) -> None:
    service, source = gcp
    service.flavour = "Vanilla"
    with pytest.raises(SourceTrouble, match="not the metadata server"):
        source.look()


# --- Azure ---


@pytest.fixture
def azure() -> Iterator[tuple[AzureService, Azure]]:
    service = AzureService()
    with serving(service) as url:
        yield service, Azure(Metadata(url), clock=lambda: NOON)


def test_azure_says_when_it_evicts_this_machine(azure: tuple[AzureService, Azure]) -> None:
    service, source = azure
    assert source.look() == Seen(None, "Azure calls it a spot machine")
    service.preempt("gpu_7", not_before="Mon, 21 Sep 2026 14:13:20 GMT")
    seen = source.look().coming
    assert seen is not None
    assert seen.at == NOON


def test_what_azure_does_to_other_machines_and_other_events_are_no_notice(azure: tuple[AzureService, Azure]) -> None:
    service, source = azure
    service.preempt("gpu_8", not_before="Mon, 21 Sep 2026 14:13:20 GMT")
    service.preempt("gpu_7", not_before="Mon, 21 Sep 2026 14:13:20 GMT", EventType="Freeze")
    assert source.look().coming is None


def test_an_event_of_azure_that_has_started_keeps_the_time_it_named(azure: tuple[AzureService, Azure]) -> None:
    service, source = azure
    service.preempt("gpu_7", not_before="Mon, 21 Sep 2026 14:13:20 GMT")
    source.look()
    service.events[0] |= {"EventStatus": "Started", "NotBefore": ""}
    seen = source.look().coming
    assert seen is not None
    assert seen.at == NOON


def test_an_event_of_azure_without_a_time_leaves_thirty_seconds(azure: tuple[AzureService, Azure]) -> None:
    service, source = azure
    service.preempt("gpu_7", not_before="")
    first = source.look().coming
    source.clock = lambda: NOON + 5
    assert first == source.look().coming == Coming(NOON + 30, first.why if first else "")


def test_the_first_question_to_azure_has_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """It switches the service on, and may take two minutes."""
    monkeypatch.setattr("node.notices.azure.ASK_SECONDS_MAX", 0.3)
    service = AzureService()
    service.first_seconds = 1.0
    with serving(service) as url:
        assert Azure(Metadata(url)).look().coming is None


def test_a_document_of_azure_that_is_none_is_trouble(azure: tuple[AzureService, Azure]) -> None:
    service, source = azure
    service.events.append({"EventType": "Preempt"})
    with pytest.raises(SourceTrouble, match="cannot be read"):
        source.look()


# --- hooks ---


def test_a_file_says_that_the_end_is_coming_and_how_soon(tmp_path: Path) -> None:
    path = tmp_path / "notice"
    hook = FileHook(path, 60.0, clock=lambda: NOON)
    assert hook.look() == Seen()
    path.write_text("90\n")
    assert hook.look().coming == Coming(NOON + 90, f"{path} says that this machine will be taken away")
    hook.clock = lambda: NOON + 30
    assert hook.look().coming == Coming(NOON + 90, f"{path} says that this machine will be taken away")
    path.unlink()
    assert hook.look() == Seen()


@pytest.mark.parametrize("text", ["", "soon\n", "-5", "nan", "1e99"])
def test_a_file_without_a_time_means_the_default(tmp_path: Path, text: str) -> None:
    (tmp_path / "notice").write_text(text)
    coming = FileHook(tmp_path / "notice", 60.0, clock=lambda: NOON).look().coming
    assert coming is not None
    assert coming.at == NOON + 60


@pytest.mark.parametrize(("command", "left"), [("exit 0", 60), ("echo 25; echo more", 25)])
def test_a_command_that_ends_with_0_says_that_the_end_is_coming(command: str, left: float) -> None:
    coming = CommandHook(command, 60.0, clock=lambda: NOON).look().coming
    assert coming is not None
    assert coming.at == NOON + left


def test_a_command_that_ends_with_1_says_nothing_and_any_other_end_is_trouble() -> None:
    assert CommandHook("exit 1", 60.0).look() == Seen()
    with pytest.raises(SourceTrouble, match="ended with 7"):
        CommandHook("exit 7", 60.0).look()


# --- where we are ---


def firmware(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("files", "environment", "provider", "seconds"),
    [
        ({"sys_vendor": "Amazon EC2"}, {}, "aws", None),
        ({"product_name": "Google Compute Engine"}, {}, "gcp", None),
        ({"product_name": "Google Compute Engine"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "gke", 12.0),
        ({"chassis_asset_tag": AZURE_CHASSIS_TAG}, {}, "azure", None),
        ({"sys_vendor": "Microsoft Corporation"}, {}, "", None),
        ({"sys_vendor": "Amazon EC2"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "aws", 25.0),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "", 25.0),
        ({"sys_vendor": "QEMU"}, {"RUNPOD_POD_ID": "x"}, "runpod", 4.0),
        ({"sys_vendor": "Supermicro"}, {"VAST_TCP_PORT_7946": "40001"}, "vast", None),
        ({}, {}, "", None),
    ],
)
def test_firmware_and_environment_say_where_we_are(
    tmp_path: Path, files: dict[str, str], environment: dict[str, str], provider: str, seconds: float | None
) -> None:
    found = detect(environment, firmware(tmp_path, **files))
    assert (found.provider, found.flush_seconds) == (provider, seconds)


def test_what_can_vanish_by_itself_is_known_with_the_reason(tmp_path: Path) -> None:
    assert "RUNPOD_POD_ID" in detect({"RUNPOD_POD_ID": "x"}, tmp_path).ephemeral
    assert "VAST_" in detect({"VAST_CONTAINERLABEL": "C.1"}, tmp_path).ephemeral
    assert "SLURM_JOB_ID" in detect({"SLURM_JOB_ID": "9"}, tmp_path).ephemeral
    assert detect({}, firmware(tmp_path, sys_vendor="Amazon EC2")).ephemeral == ""
    assert detect({}, tmp_path / "none") == Machine()


def test_a_service_is_asked_only_where_its_provider_is_known() -> None:
    assert sources_for("", {}) == {}
    assert sources_for("hetzner", {}) == {}
    assert {name: list(sources_for(name, {})) for name in ("aws", "gcp", "gke", "azure")} == {
        "aws": ["aws"],
        "gcp": ["gcp"],
        "gke": ["gcp"],
        "azure": ["azure"],
    }
    hooks = {"SPORE_NOTICE_FILE": "/run/notice", "SPORE_NOTICE_COMMAND": "false"}
    assert list(sources_for("vast", hooks)) == ["file", "command"]


def test_a_time_that_is_none_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="SPORE_NOTICE_SECONDS='soon'"):
        notice_seconds({"SPORE_NOTICE_SECONDS": "soon"})


@pytest.mark.parametrize("text", ["2026-09-21T14:13:20Z", "2026-09-21T16:13:20+02:00", "Mon, 21 Sep 2026 14:13:20 GMT"])
def test_both_forms_of_dates_are_read(text: str) -> None:
    assert read_time(text) == NOON
    assert read_time("whenever") is None


# --- watching ---


class Script:
    """A source that says one thing after the other, then waits."""

    def __init__(self, *steps: Seen | str) -> None:
        self.steps = list(steps)
        self.done = threading.Event()
        self.interval_seconds = 0.0

    def look(self) -> Seen:
        if not self.steps:
            self.done.set()
            self.interval_seconds = 60.0
            return self.last
        step = self.steps.pop(0)
        if isinstance(step, str):
            raise SourceTrouble(step)
        self.last = step
        return step


def watched(monkeypatch: pytest.MonkeyPatch, *steps: Seen | str) -> tuple[list[object], list[str], list[Report]]:
    monkeypatch.setattr(watching, "TROUBLE_SECONDS", 0.0)
    script = Script(*steps)
    coming: list[object] = []
    spots: list[str] = []
    reports: list[Report] = []
    watch = Watching({"x": script}, lambda name, what: coming.append(what), spots.append, reports.append)
    watch.start()
    assert script.done.wait(30)
    watch.stop()
    return coming, spots, reports


def test_what_a_source_says_is_handed_over_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    soon, later = Coming(NOON, "soon"), Coming(NOON + 9, "later")
    coming, _, _ = watched(monkeypatch, Seen(), Seen(soon), Seen(soon), Seen(later), Seen())
    assert coming == [soon, later, None]


def test_trouble_is_reported_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, reports = watched(monkeypatch, Seen(), "it is away", "it is away", "it is still away", Seen())
    assert [(report.level, report.event) for report in reports] == [
        ("warning", "notices_blind"),
        ("info", "notices_seen"),
    ]


def test_a_notice_outlives_the_service_that_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = Coming(NOON, "soon")
    coming, spots, _ = watched(monkeypatch, Seen(soon, "spot"), "it is away", Seen(soon, "spot"))
    assert coming == [soon]
    assert spots == ["spot"]


# --- when to go ---


class Told:
    """The agent's side of `Ending`."""

    def __init__(self) -> None:
        self.now = NOON
        self.plans: list[float] = []
        self.hurries: list[str] = []
        self.withdrawals: list[str] = []
        self.going: list[float | None] = []
        self.ending = Ending(
            lambda: self.now,
            lambda seconds, why: self.plans.append(seconds),
            lambda seconds, why: self.hurries.append(why),
            self.withdrawals.append,
            self.going.append,
        )


@pytest.mark.parametrize(("left", "goes_in"), [(120, 89.0), (30, 21.5), (5, 0.0)])
def test_the_plan_begins_at_once_and_the_last_flush_shortly_before_the_end(left: float, goes_in: float) -> None:
    told = Told()
    told.ending.noticed("aws", Coming(NOON + left, "soon"))
    assert (told.plans, told.going) == ([left - 1], [goes_in])
    assert told.ending.budget_seconds(110) == min(110, left - 1)


def test_the_earliest_of_several_ends_decides() -> None:
    told = Told()
    told.ending.noticed("aws", Coming(NOON + 120, "soon"))
    told.ending.noticed("file", Coming(NOON + 20, "sooner"))
    assert told.ending.budget_seconds(110) == 19
    told.ending.noticed("file", None)
    assert told.withdrawals == []
    told.ending.noticed("aws", None)
    assert len(told.withdrawals) == 1
    assert told.going[-1] is None


def test_a_danger_without_a_time_hurries_and_ends_nothing() -> None:
    told = Told()
    told.ending.noticed("aws", Coming(None, "it may end"))
    assert (told.hurries, told.plans, told.going) == (["it may end"], [], [])
    assert told.ending.budget_seconds(110) == 110
