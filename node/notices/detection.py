"""Where this machine is, from what lies on it: DMI data of the firmware, and the environment. No network is touched.

| sign | provider |
|---|---|
| DMI vendor `Amazon EC2` | aws |
| DMI product `Google Compute Engine` | gcp; with `KUBERNETES_SERVICE_HOST`, gke |
| DMI chassis tag of Azure | azure |
| `RUNPOD_POD_ID` | runpod, ephemeral |
| `VAST_CONTAINERLABEL`, `VAST_TCP_PORT_…` | vast, ephemeral |
| `SLURM_JOB_ID` | a job's node: ephemeral |
| `KUBERNETES_SERVICE_HOST` | a pod: 30 s between SIGTERM and SIGKILL unless its manifest says otherwise |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.fleet import PROVIDER_FLUSH_SECONDS

DMI_FOLDER = Path("/sys/class/dmi/id")
DMI_BYTES_MAX = 200
AZURE_CHASSIS_TAG = "7783-7084-3265-9085-8269-3286-77"  # the same on every machine of Azure, as cloud-init knows it
POD_FLUSH_SECONDS = 25.0  # of the 30 s that are the default of terminationGracePeriodSeconds


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine says of itself. "" and None: nothing. Made at start, read for the node's own host entry."""

    provider: str = ""
    ephemeral: str = ""  # the sentence why
    flush_seconds: float | None = None
    why: str = ""


def detect(environment: Mapping[str, str], dmi: Path = DMI_FOLDER) -> Machine:
    """Look at the environment first: a container's says more of its end than the host's firmware."""
    pod = "KUBERNETES_SERVICE_HOST" in environment
    if environment.get("RUNPOD_POD_ID"):
        why = "RUNPOD_POD_ID is set: a pod of RunPod"
        return Machine("runpod", why, PROVIDER_FLUSH_SECONDS["runpod"], why)
    if any(name == "VAST_CONTAINERLABEL" or name.startswith("VAST_TCP_PORT_") for name in environment):
        why = "a variable VAST_… is set: an instance of Vast.ai"
        return Machine("vast", why, None, why)
    found = _of_firmware(dmi)
    if found.provider == "gcp" and pod:
        found = Machine("gke", "", PROVIDER_FLUSH_SECONDS["gke"], "firmware of Google, and a pod of Kubernetes")
    if environment.get("SLURM_JOB_ID"):
        return Machine(found.provider, "SLURM_JOB_ID is set: the node of a job, which ends", None, found.why)
    if pod and found.provider != "gke":
        return Machine(found.provider, "", POD_FLUSH_SECONDS, found.why or "a pod of Kubernetes")
    return found


def _of_firmware(dmi: Path) -> Machine:
    if "amazon ec2" in (_read(dmi, "sys_vendor") + _read(dmi, "bios_vendor")).lower():
        return Machine("aws", why="firmware of Amazon EC2")
    if _read(dmi, "product_name") == "Google Compute Engine":
        return Machine("gcp", why="firmware of Google Compute Engine")
    if _read(dmi, "chassis_asset_tag") == AZURE_CHASSIS_TAG:
        return Machine("azure", why="firmware of Azure")
    return Machine()


def _read(dmi: Path, name: str) -> str:
    try:
        with (dmi / name).open("rb") as file:
            return file.read(DMI_BYTES_MAX).decode(errors="replace").strip()
    except OSError:
        return ""
