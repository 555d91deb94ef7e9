"""Reading single values of a hosts file: from the text that stands there to a checked value.

Every reader takes text and returns a value or raises `BadValueError` with a message and a suggestion. Values are
read from their text, never from what YAML makes of it, so that a host named `no` is not false and `1:30` is not 90.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import ip_address

from node.config_problems import BadValueError, did_you_mean, shown
from protocol.fleet import MEGABYTE, PORT_DEFAULT, RESERVED_FOLDERS, Bandwidth, parse_megabytes_per_second

NUMBER = r"(\d{1,15}(?:\.\d{1,9})?)"
# A node id becomes a certificate's name and a folder: lower case, at most one DNS label's length.
NODE_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
NODE_PATTERN = re.compile(r"[a-z0-9._*?\[\]!-]{1,128}")
KIND_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,62}[a-z0-9])?")
HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
PATH_BYTES_MAX = 1024  # a quarter of Linux' PATH_MAX leaves room for names below
GLOB_BYTES_MAX = 255  # longer than any layout of folders met; each pattern is tried against every found file

DURATION_UNITS: Mapping[str, float] = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
SIZE_UNITS: Mapping[str, int] = {
    "": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
RATE_UNITS: Mapping[str, float] = {
    "bit/s": 1 / 8, "kbit/s": 10**3 / 8, "Mbit/s": 10**6 / 8, "Gbit/s": 10**9 / 8,
    "B/s": 1, "kB/s": 10**3, "MB/s": 10**6, "GB/s": 10**9,
    "KiB/s": 1 << 10, "MiB/s": 1 << 20, "GiB/s": 1 << 30,
}  # fmt: skip
SIZE_BYTES_MAX = 1 << 60  # an exbibyte: above any disk, below where counts stop being exact
RATE_BYTES_MIN, RATE_BYTES_MAX = 1000, 10**12  # the least that makes progress; more than any link


def read_quantity(text: str, units: Mapping[str, float], example: str) -> float:
    """A number and its unit, in the base unit (seconds, bytes, bytes per second)."""
    match = re.fullmatch(rf"\s*{NUMBER}\s*([A-Za-z/%]{{0,8}})\s*", text, re.ASCII)
    if match is None:
        raise BadValueError(f"{shown(text)} is not a number with a unit", f"Write it like {example}.")
    number, unit = match.groups()
    if unit not in units:
        folded = {known.lower(): known for known in units if known}
        close = folded.get(unit.lower())
        hint = f"Did you mean {close}?" if close else did_you_mean(unit, folded, f"Write it like {example}.")
        raise BadValueError(f"{shown(unit)} is not a unit known here" if unit else "the unit is missing", hint)
    return float(number) * units[unit]


def _within(value: float, least: float, most: float, text: str, unit: str) -> float:
    """The value, if it lies between the bounds, which are in the base unit."""
    if not least <= value <= most:
        raise BadValueError(f"{shown(text)} is out of range", f"Use {least:g} to {most:g}{unit}.")
    return value


def read_seconds(text: str, least: float, most: float) -> float:
    """A duration: plain seconds, or with ms, s, m, h, d."""
    return _within(read_quantity(text, DURATION_UNITS, "60, 90s or 5m"), least, most, text, " seconds")


def read_bytes(text: str, least: int) -> int:
    """A size: plain bytes, or with a unit such as MiB or GB."""
    size_bytes = int(read_quantity(text, SIZE_UNITS, "64 MiB or 1 GiB"))
    return int(_within(size_bytes, least, SIZE_BYTES_MAX, text, " bytes"))


def read_percent(text: str) -> float:
    """A share of a disk. Nothing and everything are refused: both are mistakes that fill or stop a machine."""
    return _within(read_quantity(text, {"": 1, "%": 1}, "70"), 1, 99, text, " percent")


def read_count(text: str, least: int, most: int) -> int:
    """A whole number."""
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
        raise BadValueError(f"{shown(text)} is not a whole number", f"Use {least} to {most}.")
    return int(_within(int(text), least, most, text, ""))


def read_bandwidth(text: str) -> Bandwidth:
    """A rate with its unit, bits or bytes, or `none`."""
    if text.strip().lower() == "none":
        return Bandwidth(None)
    rate = read_quantity(text, RATE_UNITS, "400 Mbit/s, 50 MB/s or none")
    return Bandwidth(round(_within(rate, RATE_BYTES_MIN, RATE_BYTES_MAX, text, " bytes per second")))


def read_rate(text: str) -> Bandwidth:
    """A rate with its unit, or megabytes per second as a plain number, or `none`."""
    return read_bandwidth_mbps(text) if re.fullmatch(r"[0-9.]+", text.strip(), re.ASCII) else read_bandwidth(text)


def read_bandwidth_mbps(text: str) -> Bandwidth:
    """Megabytes per second, as a plain number, or `none`."""
    try:
        return parse_megabytes_per_second(text)
    except ValueError:
        hint = f"Write megabytes ({MEGABYTE:,} bytes) per second, such as 50, or none."
        raise BadValueError(f"{shown(text)} is not a rate in megabytes per second", hint) from None


def read_flag(text: str) -> bool:
    """True or false, in the words that YAML users write."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise BadValueError(f"{shown(text)} is neither true nor false", "Write true or false.")
    return words[text.lower()]


def read_choice(text: str, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    if text not in choices:
        allowed = f"Use {', '.join(choices)}."
        raise BadValueError(f"{shown(text)} is not a choice here", did_you_mean(text, choices, allowed))
    return text


def _matching(text: str, pattern: re.Pattern[str], what: str, rule: str) -> str:
    """The text, if it has the form; upper case, the most common slip, gets its own suggestion."""
    if pattern.fullmatch(text):
        return text
    lower = text.lower()
    hint = f"Write {lower}." if pattern.fullmatch(lower) else f"Use {rule}."
    raise BadValueError(f"{shown(text)} is not {what}", hint)


ID_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', beginning and ending with a letter or digit"
read_node = partial(_matching, pattern=NODE_ID, what="a node id", rule=ID_RULE)
read_cluster = partial(_matching, pattern=NODE_ID, what="a cluster name", rule=ID_RULE)
read_kind_name = partial(
    _matching, pattern=KIND_NAME, what="a name for a kind", rule="a-z, then up to 31 of a-z, 0-9, '_', '-'"
)
read_role = partial(_matching, pattern=KIND_NAME, what="a role", rule="a-z, then up to 31 of a-z, 0-9, '_', '-'")
read_label = partial(_matching, pattern=LABEL, what="a name", rule="up to 64 of a-z, 0-9, '.', '_', '-', '/'")
read_user = partial(_matching, pattern=USER_NAME, what="a user name", rule="a login name such as ubuntu")
read_host_name = partial(_matching, pattern=HOST_NAME, what="a host name", rule="a name such as backup.example.com")
read_pattern = partial(
    _matching, pattern=NODE_PATTERN, what="a pattern of node ids", rule="a node id with *, ? or […] in it"
)


def read_address(text: str, binds: bool = False) -> str:
    """`host:port`, `[ipv6]:port` or a host alone (port 7946), in one form. Wildcards can only be bound."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([^:\[\]]{1,253}))(?::(\d{1,5}))?", text, re.ASCII)
    if match is None:
        hint = f"Write [{text}]:{PORT_DEFAULT}." if _is_ip(text) else "Write host:port, such as 10.0.0.5:7946."
        raise BadValueError(f"{shown(text)} is not an address", hint)
    ipv6, name, port = match.groups()
    host = _read_address_host(ipv6 or name, text)
    if not 1 <= int(port or PORT_DEFAULT) <= 65535:
        raise BadValueError(f"{shown(text)} has no such port", "Use a port from 1 to 65535.")
    if not binds and host in ("0.0.0.0", "::"):  # noqa: S104 (this refuses it)
        hint = "Write the address others dial here; write this one as listen."
        raise BadValueError(f"{shown(text)} can be bound but not dialled", hint)
    return f"[{host}]:{port or PORT_DEFAULT}" if ipv6 else f"{host}:{port or PORT_DEFAULT}"


def _read_address_host(host: str, text: str) -> str:
    """An IP address in its canonical form, or a host name in lower case."""
    if _is_ip(host):
        return str(ip_address(host))
    if HOST_NAME.fullmatch(host) is None or re.fullmatch(r"[0-9.]+", host):
        raise BadValueError(f"{shown(text)} names no host", "Write host:port, such as 10.0.0.5:7946.")
    return host.lower()


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def read_path(text: str) -> str:
    """A folder or file on a machine: absolute, or relative to the node's folder, without steps upwards."""
    if not text or not text.isprintable() or len(text.encode()) > PATH_BYTES_MAX or ".." in text.split("/"):
        raise BadValueError(f"{shown(text)} is not a usable path", "Write an absolute path without '..' in it.")
    return text


def read_text(text: str) -> str:
    """A line of text that is kept as it stands, such as a schedule or a public key."""
    if not text or not text.isprintable() or len(text.encode()) > PATH_BYTES_MAX:
        raise BadValueError(f"{shown(text)} is not a line of text", f"Write up to {PATH_BYTES_MAX} bytes.")
    return text


def read_glob(text: str) -> str:
    """A pattern of files below a node's root: relative, no steps upwards, outside the folders that are ours."""
    parts = text.split("/")
    if not text.isprintable() or "\\" in text or len(text.encode()) > GLOB_BYTES_MAX:
        raise BadValueError(f"{shown(text)} is not a pattern of files", 'Write it like "games/**/*.db".')
    if text.startswith("/"):
        raise BadValueError(f"{shown(text)} is absolute", "Write it relative to the node's root.")
    if ".." in parts or "." in parts or "" in parts:
        raise BadValueError(f"{shown(text)} has an empty part, '.' or '..' in it", "Name the folders themselves.")
    if any("**" in part and part != "**" for part in parts):
        raise BadValueError(f"{shown(text)} has ** beside other characters", "Write ** alone between slashes.")
    if parts[0] in RESERVED_FOLDERS or parts[0].startswith(".spore"):
        raise BadValueError(f"{shown(text)} lies in a folder that is ours", "Choose another folder.")
    return text


def read_schedule(text: str) -> str:
    """When something is due, as cron writes it: five fields; read in full where cronsim is installed."""
    hint = "Write minute, hour, day, month, weekday, such as 0 */6 * * *."
    if len(text.split()) != 5:
        raise BadValueError(f"{shown(text)} has not five fields", hint)
    try:
        from node.schedules import check_schedule
    except ImportError:
        return text
    try:
        return check_schedule(text)
    except ValueError as problem:
        raise BadValueError(str(problem), hint) from None


def scalar(read: Callable[[str], object]) -> Callable[[object], object]:
    """A reader of text as a reader of whatever stands in the file: only a single value has a text."""

    def read_scalar(value: object) -> object:
        if value is None:
            raise BadValueError("the value is missing", "Write one, or remove the line.")
        if not isinstance(value, str):
            found = "a section" if isinstance(value, dict) else "a list"
            raise BadValueError(f"{found} stands where one value belongs", "Write a single value.")
        return read(value)

    return read_scalar
