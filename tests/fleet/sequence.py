"""The steps of the fleet test, each a function that says by its name what holds when it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.fleet.fleet import WATCHDOG_SECONDS, Fleet
from tests.fleet.load import Load, check_copies

EXPOSURE_MAX = 1.5  # of `systemd-analyze security`

# By name, what is changed in the sources: another release, and two bad ones.
RELEASES: Mapping[str, dict[str, tuple[str, str]]] = {
    "first": {},
    "second": {"node/__init__.py": ('"""', '"""Another release. ')},
    "bad": {"node/run.py": ("    logger = _logger()\n", '    raise SystemExit("a bad release")\n')},
}


def check_mode_on_empty_hosts_succeeds_and_changes_nothing(fleet: Fleet) -> None:
    fleet.play("site.yml", "--check", "--diff")
    for host in fleet.hosts:
        assert fleet.on(host.name, "ls /opt; ls /etc/systemd/system/spore.service 2>/dev/null || true").split() == []


def one_command_takes_empty_hosts_to_a_verified_cluster(fleet: Fleet) -> None:
    recap = fleet.play("site.yml")
    assert "the canary" not in recap.output
    for host in fleet.hosts:
        facts = fleet.status(host.name)
        assert facts["members"] == {"alive": len(fleet.hosts), "suspect": 0, "down": 0}, facts
        assert facts["at_risk"]["artifacts"] == 0
    lying = [host.name for host in fleet.hosts if (fleet.files(host.name) / "spore-canary").is_file()]
    assert len(lying) >= 3, f"the canary lies on {lying}"  # on its origin and two others


def the_unit_is_what_systemd_calls_safe(fleet: Fleet) -> None:
    fleet.on("alpha", "systemd-analyze verify /etc/systemd/system/spore.service")
    last = fleet.on("alpha", "systemd-analyze security --no-pager spore.service").strip().splitlines()[-1]
    exposure = float(last.rpartition(":")[0].rpartition(":")[2].split()[0] if last.count(":") > 1 else last.split()[-3])
    print(f"   exposure {exposure}")
    assert exposure <= EXPOSURE_MAX, last


def run_again_it_changes_nothing(fleet: Fleet) -> None:
    recap = fleet.play("site.yml")
    assert set(recap.changed.values()) == {0}, recap.changed


def the_status_of_the_fleet_is_one_line_a_host(fleet: Fleet) -> None:
    recap = fleet.play("status.yml")
    assert set(recap.changed.values()) == {0}
    assert recap.output.count(f"{len(fleet.hosts)} alive, 0 down, 0 at risk") == len(fleet.hosts), recap.output[-3_000:]


def an_upgrade_under_load_loses_nothing(fleet: Fleet) -> None:
    load = Load(fleet, "gamma")
    load.start()
    before = fleet.release("alpha")
    fleet.bundle = fleet.bundles["second"]
    fleet.play("upgrade.yml")
    promised = load.stop()
    assert {fleet.release(host.name) for host in fleet.hosts} == {_named(fleet.bundle.name)}
    assert before != _named(fleet.bundle.name)
    waits = load.waits()
    print(f"   {len(promised)} artifacts; waits: median {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.2f} s")
    assert len(promised) >= 10
    check_copies(fleet, promised, copies=3)


def a_bad_release_stops_at_the_first_host_and_goes_back(fleet: Fleet) -> None:
    running = {host.name: (fleet.release(host.name), _started(fleet, host.name)) for host in fleet.hosts}
    good, fleet.bundle = fleet.bundle, fleet.bundles["bad"]
    recap = fleet.play("upgrade.yml", fails=True)
    fleet.bundle = good
    assert "no other host was changed" in recap.output, recap.output[-5_000:]
    for name, (release, started) in running.items():
        assert fleet.release(name) == release
        touched = _started(fleet, name) != started
        assert touched == (name == _first(fleet)), f"{name} was{'' if touched else ' not'} restarted"
    facts = fleet.status(_first(fleet))
    assert not facts["draining"]
    assert facts["members"]["down"] == 0


def a_rollback_returns_to_the_release_before(fleet: Fleet) -> None:
    fleet.play("rollback.yml")
    assert {fleet.release(host.name) for host in fleet.hosts} == {_named(fleet.bundles["first"].name)}
    fleet.bundle = fleet.bundles["first"]


def a_drained_node_stops_and_nothing_depends_on_it(fleet: Fleet) -> None:
    fleet.on("delta", "head -c 3000000 /dev/urandom | spore put - --kind npz --name drained.npz --wait 2")
    fleet.play("drain.yml", "--limit", "delta", "-e", "stop=true")
    assert "inactive" in fleet.on("delta", "systemctl is-active spore.service || true")
    holders = fleet.on("alpha", "spore where npz/drained.npz --json")
    assert sum(f'"node": "{name}"' in holders for name in ("alpha", "beta", "gamma", "epsilon")) >= 2
    fleet.play("site.yml")
    assert fleet.status("delta")["disk"]["accepting"]


def a_killed_agent_is_started_again(fleet: Fleet) -> None:
    before = _started(fleet, "beta")
    fleet.on("beta", "systemctl kill --signal=KILL spore.service")
    fleet.until("systemd starts the killed agent", lambda: _started(fleet, "beta") != before)
    fleet.until("it sees the others again", lambda: fleet.status("beta")["members"]["alive"] == len(fleet.hosts))


def a_hung_agent_is_started_again(fleet: Fleet) -> None:
    before = _started(fleet, "beta")
    fleet.on("beta", "kill -STOP $(systemctl show --property MainPID --value spore.service)")
    fleet.until("the watchdog ends the hung agent", lambda: _started(fleet, "beta") != before, WATCHDOG_SECONDS + 60.0)
    assert "watchdog" in fleet.on("beta", "journalctl --no-pager -u spore.service | grep -i watchdog | tail -1").lower()
    fleet.until("it sees the others again", lambda: fleet.status("beta")["members"]["alive"] == len(fleet.hosts))


def certificates_and_the_authority_are_replaced_while_all_goes_on(fleet: Fleet) -> None:
    load = Load(fleet, "beta")
    load.start()
    before = fleet.on("gamma", "cat /var/lib/spore/identity/ca.pem")
    fleet.play("rotate.yml")
    assert fleet.on("gamma", "cat /var/lib/spore/identity/ca.pem") == before
    fleet.play("rotate.yml", "-e", "authority=true")
    check_copies(fleet, load.stop(), copies=3)
    authorities = {fleet.on(host.name, "cat /var/lib/spore/identity/ca.pem") for host in fleet.hosts}
    assert len(authorities) == 1
    assert before not in authorities
    assert authorities.pop().count("BEGIN CERTIFICATE") == 1
    fleet.on("gamma", "systemctl restart spore.service")
    fleet.until("it meets all with the new", lambda: fleet.status("gamma")["members"]["alive"] == len(fleet.hosts))


def files_put_back_from_outside_are_artifacts_again(fleet: Fleet) -> None:
    """What docs/operations.md says of restoring from an external copy: the files, below the root, under their names."""
    folder = fleet.files("beta") / "models"
    folder.mkdir(exist_ok=True)
    (folder / "restored.pth").write_bytes(b"weights" * 100_000)
    fleet.on("beta", "chown -R spore:spore /var/lib/spore/files/models")
    fleet.until("it is known", lambda: "restored" in fleet.on("beta", "spore ls 'model/*'"))
    fleet.on("beta", "spore wait model/models/restored.pth --copies 2 --timeout 120")


def a_removed_node_is_not_expected_any_more(fleet: Fleet) -> None:
    fleet.play("remove.yml", "-e", "node=delta")
    del fleet.entries["delta"]
    fleet.write_hosts_file()
    fleet.hosts.remove(fleet.host("delta"))
    fleet.play("site.yml")
    assert fleet.status("alpha")["members"] == {"alive": len(fleet.hosts), "suspect": 0, "down": 0}


def a_lost_node_is_removed_and_its_copies_are_made_anew(fleet: Fleet) -> None:
    fleet.on("alpha", "head -c 3000000 /dev/urandom | spore put - --kind npz --name kept.npz --wait 2")
    lost = fleet.host("epsilon")
    lost.cut_off()
    fleet.until("the others see it", lambda: fleet.status("alpha")["members"]["down"] == 1)
    del fleet.entries["epsilon"]
    fleet.hosts.remove(lost)
    fleet.play("remove.yml", "-e", "node=epsilon", "-e", "lost=true")
    fleet.write_hosts_file()
    fleet.play("site.yml")
    assert fleet.status("alpha")["members"] == {"alive": len(fleet.hosts), "suspect": 0, "down": 0}
    fleet.on("alpha", "spore wait npz/kept.npz --copies 2 --timeout 120")


def _first(fleet: Fleet) -> str:
    """The host that upgrades first: not the issuer, and the first by domain and name."""
    return min((entry["region"], name) for name, entry in fleet.entries.items() if "issuer" not in entry)[1]


def _started(fleet: Fleet, name: str) -> str:
    return fleet.on(name, "systemctl show --property ExecMainStartTimestampMonotonic --value spore.service").strip()


def _named(bundle: str) -> str:
    return bundle.removeprefix("spore-").removesuffix(".tar.gz")


Step = Callable[[Fleet], None]
CORE: tuple[Step, ...] = (
    one_command_takes_empty_hosts_to_a_verified_cluster,
    the_unit_is_what_systemd_calls_safe,
    run_again_it_changes_nothing,
    an_upgrade_under_load_loses_nothing,
    a_bad_release_stops_at_the_first_host_and_goes_back,
)
FORMS: Mapping[str, tuple[Step, ...]] = {
    "short": CORE,
    "full": (
        check_mode_on_empty_hosts_succeeds_and_changes_nothing,
        *CORE,
        the_status_of_the_fleet_is_one_line_a_host,
        a_rollback_returns_to_the_release_before,
        a_drained_node_stops_and_nothing_depends_on_it,
        a_killed_agent_is_started_again,
        a_hung_agent_is_started_again,
        certificates_and_the_authority_are_replaced_while_all_goes_on,
        files_put_back_from_outside_are_artifacts_again,
        a_removed_node_is_not_expected_any_more,
        a_lost_node_is_removed_and_its_copies_are_made_anew,
    ),
    "up": (one_command_takes_empty_hosts_to_a_verified_cluster,),
}
