"""The script for machines that vanish, with a stand-in for `spore`: names, port mappings, signals, restarts, one of it.

What it does on a bare machine is in test_spot_bootstrap.py.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import tool
from tests.metadata_servers import AwsService, serving

SCRIPT = Path(__file__).resolve().parents[1] / "deploy" / "spot" / "spore-spot.sh"
PATIENCE_SECONDS = 30.0
STAND_IN = """#!/bin/sh
# Notes what it is asked and told; `agent` lives until TERM, or ends at once with the code in the file `ends`.
echo "$@" >>"{notes}/calls"
if [ "$1" = join ]; then
    [ ! -s "{notes}/refusals" ] || {{ sed -i 1d "{notes}/refusals"; echo refused >&2; exit 1; }}
    cat >"{notes}/token"
    mkdir -p "$3/identity"
    exit 0
fi
env | grep ^SPORE_ | sort >"{notes}/environment"
trap 'echo TERM >>"{notes}/signals"; exit 7' TERM
trap 'echo USR1 >>"{notes}/signals"' USR1
trap 'echo HUP >>"{notes}/signals"' HUP
if [ -s "{notes}/ends" ]; then code=$(cat "{notes}/ends"); rm "{notes}/ends"; exit "$code"; fi
echo ready >>"{notes}/ready"
while :; do sleep 0.05 & wait $!; done
"""


class Machine:
    """A folder with an installed stand-in, and the script run on it."""

    def __init__(self, folder: Path, shell: tuple[str, ...] = ("sh",)) -> None:
        self.notes, self.shell = folder / "notes", shell
        self.directory, prefix = folder / "node", folder / "prefix"
        self.notes.mkdir()
        (prefix / "current" / "bin").mkdir(parents=True)
        stand_in = prefix / "current" / "bin" / "spore"
        stand_in.write_text(STAND_IN.format(notes=self.notes))
        stand_in.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SPORE_", "VAST_", "RUNPOD_"))}
        self.env = {**kept, "SPORE_DIR": str(self.directory), "SPORE_PREFIX": str(prefix), "SPORE_TOKEN": "spore1-x"}
        self.running: list[subprocess.Popen[bytes]] = []

    def call(self, word: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [*self.shell, str(SCRIPT), word]
        return subprocess.run(
            command, env={**self.env, **env}, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
        )

    def run(self, **env: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*self.shell, str(SCRIPT), "run"], env={**self.env, **env}, start_new_session=True)
        self.running.append(process)
        self.until("ready")
        return process

    def read(self, name: str) -> list[str]:
        path = self.notes / name
        return path.read_text().splitlines() if path.exists() else []

    def until(self, name: str, *wanted: str, count: int = 1) -> None:
        """Wait until a note has these lines, or so many."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (set(wanted) <= set(self.read(name)) and len(self.read(name)) >= count):
            assert time.monotonic() < deadline, f"{name} has {self.read(name)}"
            time.sleep(0.02)

    def end(self) -> None:
        self.call("stop")
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(params=["sh", "busybox"])
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Under the system's sh, and under that of BusyBox where it is installed."""
    if request.param == "busybox" and shutil.which("busybox") is None:
        pytest.skip("busybox is not installed")
    made = Machine(tmp_path, ("busybox", "sh") if request.param == "busybox" else ("sh",))
    yield made
    made.end()


def test_it_joins_once_and_tells_the_agent_no_secret(machine: Machine) -> None:
    machine.run(SPORE_NODE="spot-1")
    assert machine.read("calls") == [f"join - {machine.directory} --node spot-1", f"agent {machine.directory}"]
    assert machine.read("token") == ["spore1-x"]
    assert not any("SPORE_TOKEN" in line for line in machine.read("environment"))


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"VAST_CONTAINERLABEL": "C.12345"}, "vast-12345"),
        ({"RUNPOD_POD_ID": "AbC_9"}, "runpod-abc_9"),
        ({"RUNPOD_POD_ID": "x" * 80}, "runpod-" + "x" * 56),
        ({"RUNPOD_POD_ID": "straße!"}, "runpod-stra--e"),
    ],
)
def test_names_are_made_of_what_the_provider_calls_the_machine(tmp_path: Path, env: dict[str, str], name: str) -> None:
    machine = Machine(tmp_path)
    machine.run(**env)
    assert machine.read("calls")[0].endswith(f"--node {name}")
    machine.end()


@pytest.mark.parametrize(
    ("env", "advertised"),
    [
        ({"VAST_TCP_PORT_7946": "40001", "PUBLIC_IPADDR": "203.0.113.7"}, "203.0.113.7:40001"),
        ({"VAST_TCP_PORT_8000": "40002", "PUBLIC_IPADDR": "203.0.113.7", "SPORE_PORT": "8000"}, "203.0.113.7:40002"),
        ({"RUNPOD_TCP_PORT_7946": "40003", "RUNPOD_PUBLIC_IP": "203.0.113.8"}, "203.0.113.8:40003"),
        ({"SPORE_ADVERTISE": "gpu.example.com:1", "VAST_TCP_PORT_7946": "2"}, "gpu.example.com:1"),
        ({"VAST_TCP_PORT_22": "40001", "PUBLIC_IPADDR": "203.0.113.7"}, None),
    ],
)
def test_the_mapped_address_and_port_are_advertised(
    tmp_path: Path, env: dict[str, str], advertised: str | None
) -> None:
    machine = Machine(tmp_path)
    machine.run(**env)
    told = dict(line.split("=", 1) for line in machine.read("environment"))
    assert told.get("SPORE_ADVERTISE") == advertised
    assert told.get("SPORE_LISTEN") == ("0.0.0.0:8000" if "SPORE_PORT" in env else None)
    machine.end()


def test_the_metadata_service_is_asked_for_the_public_address_only_when_told_to(tmp_path: Path) -> None:
    tool("curl")
    service = AwsService()
    service.put("/latest/meta-data/public-ipv4", "203.0.113.9")
    with serving(service) as url:
        machine = Machine(tmp_path)
        facts = {"SPORE_METADATA_URL": url, "SPORE_PROVIDER": "aws"}
        machine.run(**facts)
        assert service.asked == []
        machine.end()
        (machine.notes / "ready").unlink()
        machine.run(**facts, SPORE_PUBLIC="1")
        assert "SPORE_ADVERTISE=203.0.113.9:7946" in machine.read("environment")
        machine.end()


def test_signals_reach_the_agent_and_its_exit_code_comes_back(machine: Machine) -> None:
    process = machine.run()
    process.send_signal(signal.SIGUSR1)
    machine.until("signals", "USR1")
    process.send_signal(signal.SIGHUP)
    machine.until("signals", "HUP")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 7
    assert machine.read("signals")[-1] == "TERM"


def test_an_agent_that_ends_by_itself_is_started_again(machine: Machine) -> None:
    (machine.notes / "ends").write_text("1")
    machine.run()
    assert machine.read("calls").count(f"agent {machine.directory}") == 2


def test_an_agent_that_is_configured_wrongly_is_not(machine: Machine) -> None:
    (machine.notes / "ends").write_text("2")
    done = machine.call("run")
    assert done.returncode == 2
    assert "cannot run as it is configured" in done.stderr


def test_a_refused_join_is_tried_again(machine: Machine) -> None:
    (machine.notes / "refusals").write_text("once\n")
    machine.run()
    assert len([line for line in machine.read("calls") if line.startswith("join")]) == 2


def test_it_runs_once_however_often_it_is_started(machine: Machine) -> None:
    assert machine.call("status").returncode == 3
    assert "started" in machine.call("start").stdout
    machine.until("ready")
    assert "already running" in machine.call("start").stdout
    assert machine.call("status").returncode == 0
    assert machine.call("run").returncode == 2
    assert machine.call("stop").stdout == "stopped\n"
    assert machine.read("signals") == ["TERM"]
    assert machine.call("status").returncode == 3
    assert len(machine.read("ready")) == 1


def test_a_number_that_another_process_has_by_now_is_not_it(machine: Machine) -> None:
    machine.directory.mkdir()
    (machine.directory / "spot.pid").write_text(f"{os.getpid()}\n")
    assert machine.call("status").returncode == 3


def test_without_a_token_it_says_what_to_do(machine: Machine) -> None:
    done = machine.call("run", SPORE_TOKEN="")
    assert done.returncode == 2
    assert "SPORE_TOKEN is not set; make one with `spore token --ephemeral`" in done.stderr


def test_without_python_it_says_what_to_do(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    shutil.rmtree(tmp_path / "prefix")
    (tmp_path / "bin").mkdir()
    for name in ("sh", "id", "mkdir", "chmod", "cat", "tr", "grep", "rm", "date"):
        (tmp_path / "bin" / name).symlink_to(tool(name))
    done = machine.call("run", PATH=str(tmp_path / "bin"))
    assert done.returncode == 2
    assert "no Python 3.11 or later" in done.stderr


@pytest.mark.parametrize("name", ["spore-spot.sh", "slurm.sbatch"])
def test_the_scripts_are_clean(name: str) -> None:
    done = subprocess.run(
        [tool("shellcheck"), "-s", "sh", str(SCRIPT.with_name(name))], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_the_manifest_of_kubernetes_flushes_within_its_grace() -> None:
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all(SCRIPT.with_name("kubernetes.yaml").read_text()))
    (pod,) = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"]
    (agent,) = [c for c in pod["containers"] if c["name"] == "spore"]
    env = {entry["name"]: entry.get("value") for entry in agent["env"]}
    assert float(env["SPORE_FLUSH_SECONDS"]) < pod["terminationGracePeriodSeconds"]
