"""Names: whatever passes stays below the root it is joined to, and out of the folders that are ours."""

import os
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.names import (
    NAME_BYTES_MAX,
    OWN_FOLDER,
    PART_BYTES_MAX,
    PEERS_FOLDER,
    NameRefused,
    check_name,
    check_node,
    check_path,
    name_of,
    publication_path,
    publishable,
)

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure
ROOT = "/srv/root"

anything = st.text(max_size=80) | st.lists(
    st.sampled_from(
        ["..", ".", "", "a", ".spore", "peers", "alpha", "\0", "~", "$HOME", "\\", "é", "\u2028", "x" * 300]
    ),
    max_size=6,
).map("/".join)
nodes = st.sampled_from(["alpha", "beta", "a.b-c_9"])


def is_below(path: str) -> bool:
    return os.path.normpath(os.path.join(ROOT, path)).startswith(ROOT + "/")


# --- paths ---

BAD_PATHS = {
    "": "1 to 1024 bytes",
    "/etc/passwd": "absolute",
    "//": "absolute",
    "..": "'..' is not allowed",
    "../x": "'..' is not allowed",
    "a/../../x": "'..' is not allowed",
    "a/..": "'..' is not allowed",
    ".": "'.' is not allowed",
    "a/./b": "'.' is not allowed",
    "a//b": "'' is not allowed",
    "a/": "'' is not allowed",
    "a\0b": "control character",
    "a\nb": "control character",
    "\x1b[31mred": "control character",
    "a\x7f": "control character",
    "a\x85b": "control character",
    "x" * 300: "more than 255 bytes",
    "é" * 150: "more than 255 bytes",
    "/".join(["x" * 200] * 6): "1 to 1024 bytes",
    "caf\udce9.bin": "not valid UTF-8",  # how Python shows a file name that is not UTF-8
    "\ud800": "not valid UTF-8",
}


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: repr(path[:20]))
def test_a_bad_path_is_refused_and_the_sentence_says_why(path: str) -> None:
    with pytest.raises(NameRefused) as caught:
        check_path(path)
    said = str(caught.value)
    assert BAD_PATHS[path] in said
    assert "\n" not in said
    said.encode()  # fit for a log


@pytest.mark.parametrize(
    "path",
    ["a", "a/b/c.pth", "...", "..a", "a..", "a/.hidden", " ", "a b", "é/日本.db", "x" * 255, "-rf", "~root", "a\\..\\b",
     "a\u200bb", "a\u2028b", "/".join(["x" * 203] * 5) + "12345"],
    ids=lambda path: repr(path[:20]),
)  # fmt: skip
def test_a_plain_path_passes_unchanged(path: str) -> None:
    assert check_path(path) == path


def test_the_bounds_are_counted_in_bytes_and_are_inclusive() -> None:
    assert check_path("é" * 127 + "x") == "é" * 127 + "x"
    with pytest.raises(NameRefused):
        check_path("é" * 128)
    longest = "/".join(["x" * 203] * 5) + "12345"
    assert len(longest) == NAME_BYTES_MAX
    with pytest.raises(NameRefused):
        check_path(longest[:100] + "/" + longest[100:])


@UNHURRIED
@given(anything)
def test_a_path_that_passes_stays_below_its_root(path: str) -> None:
    try:
        check_path(path)
    except NameRefused:
        return
    assert is_below(path)
    assert os.path.normpath(path) == path
    assert all(len(os.fsencode(part)) <= PART_BYTES_MAX for part in path.split("/"))
    assert not any(category(character) == "Cc" for character in path)


# --- names ---


@pytest.mark.parametrize("name", ["model/best.pth", "game/alpha/a/b.db", "a/b", "z9_-/x", "model/a/.spore/x"])
def test_a_whole_name_passes_unchanged(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["model", "model/", "/model/x", "Model/x", "9model/x", "-/x", "mo del/x", "m" * 33 + "/x", "model/../x", "é/x",
     f"model/{OWN_FOLDER}", f"model/{OWN_FOLDER}/store", f"{OWN_FOLDER}/x"],
)  # fmt: skip
def test_a_name_without_a_kind_or_into_our_folder_is_refused(name: str) -> None:
    with pytest.raises(NameRefused, match="is not usable"):
        check_name(name)


@pytest.mark.parametrize("node", ["a", "alpha-1", "gh200.a_b", "9", "x" * 63])
def test_a_node_name_passes_unchanged(node: str) -> None:
    assert check_node(node) == node


@pytest.mark.parametrize("node", ["", "A", ".", "..", "a.", ".a", "-a", "a/b", "a b", "a\n", "x" * 64, "é"])
def test_a_bad_node_name_is_refused(node: str) -> None:
    with pytest.raises(NameRefused, match="a-z"):
        check_node(node)


# --- where a name is published ---


def test_a_cluster_wide_name_has_one_path_everywhere() -> None:
    name = name_of("model", "models/best.pth", "alpha", per_node=False)
    assert name == "model/models/best.pth"
    for own_node in ("alpha", "beta"):
        assert publication_path(name, "alpha", own_node, per_node=False) == "models/best.pth"


def test_a_per_node_name_is_published_below_peers_on_every_other_node() -> None:
    name = name_of("game", "games/first.db", "alpha", per_node=True)
    assert name == "game/alpha/games/first.db"
    assert publication_path(name, "alpha", "alpha", per_node=True) == "games/first.db"
    assert publication_path(name, "alpha", "beta", per_node=True) == "peers/alpha/games/first.db"


def test_equal_paths_of_two_nodes_never_meet() -> None:
    published = {
        publication_path(name_of("game", "games/first.db", origin, True), origin, "gamma", True)
        for origin in ("alpha", "beta", "gamma")
    }
    assert len(published) == 3


@pytest.mark.parametrize("path", [f"{OWN_FOLDER}/store", OWN_FOLDER, f"{PEERS_FOLDER}/beta/x.db"])
@pytest.mark.parametrize("per_node", [True, False])
def test_a_file_in_a_folder_of_ours_gets_no_name(path: str, per_node: bool) -> None:
    with pytest.raises(NameRefused, match="own folder"):
        name_of("game", path, "alpha", per_node)


@pytest.mark.parametrize(
    "name",
    [
        "game/beta/x.db",
        "game/alpha",
        "game/x.db",
        f"game/alpha/{OWN_FOLDER}/store",
        f"game/alpha/{PEERS_FOLDER}/beta/x",
    ],
)
def test_a_per_node_name_that_is_not_its_origins_own_is_not_publishable(name: str) -> None:
    """From the network: beta may not write into alpha's name space, nor anybody into the folders that are ours."""
    assert not publishable(name, "alpha", per_node=True)
    with pytest.raises(NameRefused):
        publication_path(name, "alpha", "gamma", per_node=True)


@pytest.mark.parametrize("name", [f"model/{PEERS_FOLDER}/beta/x", f"model/{OWN_FOLDER}/store"])
def test_a_cluster_wide_name_in_a_folder_of_ours_is_not_publishable(name: str) -> None:
    assert not publishable(name, "alpha", per_node=False)


@pytest.mark.parametrize("path", ["live.db-wal", "games/live.db-shm", "games/live.db-journal", "a/LIVE.DB-WAL", "-wal"])
@pytest.mark.parametrize("per_node", [True, False])
def test_a_name_that_sqlite_would_play_into_a_database_is_refused(path: str, per_node: bool) -> None:
    with pytest.raises(NameRefused, match="rename it"):
        name_of("game", path, "alpha", per_node)
    name = f"game/alpha/{path}" if per_node else f"game/{path}"
    assert not publishable(name, "alpha", per_node)
    with pytest.raises(NameRefused):
        publication_path(name, "alpha", "beta", per_node)


@pytest.mark.parametrize("path", ["live.db", "live.db-walk", "training-journal/monday.md", "journal", "wal/x"])
def test_a_name_that_only_resembles_a_sidecar_passes(path: str) -> None:
    assert publication_path(name_of("model", path, "alpha", False), "alpha", "beta", False) == path


def test_a_per_node_name_leaves_room_for_the_folder_of_its_origin() -> None:
    """`peers` is longer than `game`: a name that just passes would be too long a path on every other node."""
    longest = "/".join(["x" * 200] * 5) + "y" * 9
    assert check_name(f"game/alpha/{longest}")
    with pytest.raises(NameRefused, match="shorten"):
        name_of("game", longest, "alpha", per_node=True)
    assert not publishable(f"game/alpha/{longest}", "alpha", per_node=True)
    assert publication_path(name_of("game", longest[:-1], "alpha", True), "alpha", "beta", True)


@UNHURRIED
@given(st.sampled_from(["game", "a"]), anything, nodes, nodes, st.booleans())
def test_whatever_gets_a_name_is_published_below_the_root_and_outside_our_own_folder(
    kind: str, path: str, origin: str, own_node: str, per_node: bool
) -> None:
    try:
        name = name_of(kind, path, origin, per_node)
    except NameRefused:
        return
    published = publication_path(name, origin, own_node, per_node)
    assert is_below(published)
    assert published.split("/")[0] != OWN_FOLDER
    others = per_node and origin != own_node
    assert published == (f"{PEERS_FOLDER}/{origin}/{path}" if others else path)


@UNHURRIED
@given(anything, nodes, nodes, st.booleans())
def test_whatever_name_comes_from_the_network_is_published_below_the_root_or_refused(
    rest: str, origin: str, own_node: str, per_node: bool
) -> None:
    try:
        name = check_name(f"game/{rest}")
    except NameRefused:
        return
    if publishable(name, origin, per_node):
        published = publication_path(name, origin, own_node, per_node)
        assert is_below(published)
        assert published.split("/")[0] != OWN_FOLDER
        assert (published.split("/")[0] == PEERS_FOLDER) is (per_node and origin != own_node)
    else:
        with pytest.raises(NameRefused):
            publication_path(name, origin, own_node, per_node)
