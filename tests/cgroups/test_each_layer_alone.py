"""All host deaths and commands of the first guarantee again: with a cgroup, and with one layer of
containment at a time.

In that guarantee's own tests no command asks for a cgroup: mark, descent and time do the work. Here
a cgroup joins them ("all"), and then whatever else could find a process is switched off (layers.py):

    all           mark, descent, time and the best cgroup of this machine
    v2            cgroup v2 alone: no mark, orphans go to process 1, nobody looks at children
    v2-frozen     the same without cgroup.kill, as before Linux 5.14: freeze, kill, thaw
    v1            v1's freezer alone
    v1-loop       v1 without a freezer: list and kill until the list is empty
    without-mark  cgroup and descent, as where a hard limit is too low for a mark
    mark          the mark alone

Every command must die by each, except:

- by the mark alone, those that shed it (su-..., unmarked-...): one here shows that they escape. They are
  what the other layers are for.
- by the cgroup alone, what somebody with the right to do so moved out of it: mark and descent have that.
- descent alone is `test_nothing_is_left_where_no_mark_fits` of the first guarantee.
- guard and watch killed at once are not here: the host then looks for marks alone, and groups wait for
  the next guard. Nor with the host besides: there `pdeathsig` holds, and no layer does.

A pair of death and command costs 0.2 s: all deaths meet some commands, all commands some deaths.
MUONTRAP_TEST_PAIRS=all is every pair, few are a few for each layer. On the machines of tests/machines,
which are slow, this does:
`-k "(sigkill-daemon] or guard-main-thread-ends] or escapes) and not then"`.

The arena counts as before. What muontrap moves in another hierarchy stays where it was in the arena's;
in the arena's own, the group is made below the host's, which is the arena, and that counts too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from arena import Arena, CgroupLedger, Host, is_alive
from commands import COMMANDS, locks_limit
from layers import layout_without
from test_g1_nothing_outlives_its_host import DEATHS, WITHIN, die_early, start_without

from muontrap.errors import ContainmentError
from muontrap.host import cgroups
from muontrap.logic.command import Command

Measure = Callable[[float], None]

pytestmark = pytest.mark.slow


class Layer(NamedTuple):
    """What a command is contained by, as what it is not."""

    without: tuple[str, ...]
    version: int | None = 0  # of the cgroup: 1, 2, 0 for any, None for no cgroup

    @property
    def has_group(self) -> bool:
        return self.version is not None


LAYERS = {
    "all": Layer(()),
    "v2": Layer(("mark", "descent"), 2),
    "v2-frozen": Layer(("mark", "descent", "cgroup.kill"), 2),
    "v1": Layer(("mark", "descent", "v2"), 1),
    "v1-loop": Layer(("mark", "descent", "v2", "freezer"), 1),
    "without-mark": Layer(("mark",)),
    "mark": Layer(("descent",), None),
}

# The guard does the work, the watch does, the watch takes over.
SOME_DEATHS = ("sigkill", "host-then-guard")
SOME_COMMANDS = ("daemon", "su-daemon-beside")
FEW_DEATHS = ("sigkill", "guard")
FEW_COMMANDS = ("daemon", "chain", "fork-bomb", "main-thread-ends")


def pairs() -> Iterator[tuple[str, str, str]]:
    """Layer, death, command."""
    choice = os.environ.get("MUONTRAP_TEST_PAIRS", "some")
    every = choice == "all"
    for layer in LAYERS:
        most = layer in {"all", "v2", "v1"} and choice != "few"
        for death in DEATHS:
            for command in COMMANDS:
                if most:
                    chosen = every or death in SOME_DEATHS or command in SOME_COMMANDS
                else:
                    chosen = death in FEW_DEATHS and command in FEW_COMMANDS
                if chosen:
                    yield layer, death, command


def need(layer: Layer) -> None:
    """Skip where the machine has no such hierarchy, or this user may not make a group in it."""
    if not layer.has_group:
        return
    layout = layout_without(*layer.without)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroups, "discover", lambda: layout)
        try:
            found = cgroups.place(Command(["true"], cgroup=True), 0)
        except ContainmentError as error:
            if os.getuid() == 0 and (layout.unified or layout.controllers):
                raise
            pytest.skip(str(error))
    if layer.version and found and found.version != layer.version:
        pytest.skip(f"no cgroup v{layer.version} here")


def start(
    arena: Arena, layer: Layer, command: str, **options: object
) -> tuple[Host, list[int], list[list[str]]]:
    """A host with commands that these layers contain, and no others: the kernel says so."""
    need(layer)
    started, pids, groups = start_without(arena, command, layer.without, cgroup=layer.has_group, **options)
    for group in groups[0]:  # a command beside it may have ended by itself
        assert str(pids[0]) in Path(group, "cgroup.procs").read_text(encoding="ascii").split()
    assert bool(groups[0]) == layer.has_group
    is_marked = locks_limit(pids[0]) != locks_limit(os.getpid())
    assert is_marked == ("mark" not in layer.without)
    return started, pids, groups


def assert_removed(groups: list[list[str]]) -> None:
    left = [group for paths in groups for group in paths if os.path.exists(group)]
    assert not left


@pytest.mark.parametrize(("layer", "death", "command"), list(pairs()))
def test_nothing_is_left(arena: Arena, measure: Measure, layer: str, death: str, command: str) -> None:
    started, _pids, groups = start(arena, LAYERS[layer], command)
    moment, spared = DEATHS[death](arena, started)
    measure(arena.wait_left(spared, bound=WITHIN) - moment)
    assert all(is_alive(pid) for pid in spared)
    assert_removed(groups)


@pytest.mark.parametrize("layer", ["v2", "v1"])
@pytest.mark.parametrize(
    "command", ["ignore-signals", "tree-of-sessions", "stopped-children", "chain", "daemonize-on-term"]
)
def test_nothing_is_left_when_all_get_the_first_signal(arena: Arena, layer: str, command: str) -> None:
    started, _pids, groups = start(arena, LAYERS[layer], command, kill_mode="control-group")
    started.signal(signal.SIGKILL)
    arena.wait_left(bound=WITHIN)
    assert_removed(groups)


@pytest.fixture
def base(arena: Arena, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory for the groups of a test that can't ask its host for them."""
    layer = LAYERS[request.getfixturevalue("layer")]
    need(layer)
    layout = layout_without(*layer.without)
    place = layout.unified or layout.controllers["freezer"]
    assert place.own
    assert isinstance(arena.ledger, CgroupLedger)
    own = arena.ledger.path if arena.ledger.path.is_relative_to(place.point) else Path(place.own)
    path = own / f"{arena.folder.name}-base"
    path.mkdir()
    yield path
    for folder, _, _ in os.walk(path, topdown=False):
        os.rmdir(folder)


@pytest.mark.parametrize("milliseconds", [0, 0.5, 1, 2, 4, 8, 16])
@pytest.mark.parametrize("death", ["sigkill", "execv"])
@pytest.mark.parametrize("layer", ["v2", "v1"])
def test_death_in_the_first_milliseconds_of_a_launch(
    arena: Arena, base: Path, measure: Measure, layer: str, death: str, milliseconds: float
) -> None:
    place = layout_without(*LAYERS[layer].without)
    point = (place.unified or place.controllers["freezer"]).point
    without = LAYERS[layer].without
    group = str(base.relative_to(point))
    measure(die_early(arena, death, milliseconds, "daemon.py", without=without, cgroup_base=group))
    assert not list(base.glob("muontrap-*"))


# --- Where one layer is not enough


def move_out(arena: Arena, groups: list[str]) -> None:
    """Take the daemon out of its cgroup, as a root program of the command can."""
    for group in groups:
        daemon = arena.the("sleep")
        Path(group).with_name("cgroup.procs").write_text(str(daemon), encoding="ascii")
        assert str(daemon) not in Path(group, "cgroup.procs").read_text(encoding="ascii").split()


@pytest.mark.parametrize(
    ("without", "version", "command"),
    [
        (("mark", "descent"), None, "daemon"),
        (("descent",), None, "unmarked-daemon"),
        (("mark", "descent"), 2, "daemon"),
        (("mark", "descent", "v2"), 1, "daemon"),
    ],
    ids=["no-layer", "mark-that-is-shed", "v2-moved-out", "v1-moved-out"],
)
def test_one_daemon_escapes(
    arena: Arena, without: tuple[str, ...], version: int | None, command: str
) -> None:
    """So the layers really are off, and nothing else had a part in what died elsewhere in this file."""
    started, _pids, groups = start(arena, Layer(without, version), command)
    move_out(arena, groups[0])
    started.signal(signal.SIGKILL)
    while len(left := arena.left()) > 1:
        arena.wait_one_dead(left, bound=WITHIN)
    assert len(left) == 1
    assert_removed(groups)


@pytest.mark.parametrize("death", FEW_DEATHS)
@pytest.mark.parametrize("without", ["mark", "descent"])
def test_a_process_moved_out_of_the_cgroup_has_another_layer(arena: Arena, without: str, death: str) -> None:
    started, _pids, groups = start(arena, Layer((without,)), "daemon")
    move_out(arena, groups[0])
    _moment, spared = DEATHS[death](arena, started)
    arena.wait_left(spared, bound=WITHIN)
    assert_removed(groups)


@pytest.mark.parametrize("death", FEW_DEATHS)
@pytest.mark.parametrize("command", ["unmarked-daemon", "unmarked-chain", "su-daemon"])
def test_a_shed_mark_has_another_layer(arena: Arena, command: str, death: str) -> None:
    started, _pids, groups = start(arena, Layer(("descent",), 0), command)
    _moment, spared = DEATHS[death](arena, started)
    arena.wait_left(spared, bound=WITHIN)
    assert_removed(groups)
