"""A tree of daemons of all kinds: nothing of it outlives its host, or its own orderly stop.

The verdict is the kernel's: the list of processes in the arena.  Times: MUONTRAP_MEASURE=1.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from arena import BOUND, Arena, Host, is_alive
from commands import argv, need_program
from hostlib import GRACE, Any, contextlib, die, hear, muontrap, say
from recorder import program

Measure = Callable[[float], None]

pytestmark = pytest.mark.slow

WITHIN = GRACE + BOUND

SAY_READY = 8  # of the programs, into the arena's FIFO


def daemons(arena: Arena) -> dict[str, list[dict[str, Any]]]:
    """20 daemons in groups, as options of `Daemon`; those of the last group fail for ever."""
    folder = arena.folder
    for name in ("nginx-1", "nginx-2", "redis-1", "redis-2"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    redis, ping = need_program("redis-server"), need_program("ping")
    need_program("nginx")

    def redis_in(name: str) -> list[str]:
        where = str(folder / name)
        return [redis, "--port", "0", "--unixsocket", f"{where}/redis.sock", "--dir", where, "--save", ""]

    nginx_conf = folder / "nginx-2" / "front.conf"
    nginx_conf.write_text(
        f"daemon off; pid {folder}/nginx-2/pid; error_log {folder}/nginx-2/error.log;"
        "worker_processes 2; events { worker_connections 16; }"
        f"http {{ access_log off; server {{ listen unix:{folder}/nginx-2/front.sock; }} }}"
    )
    flood = "while :; do echo flood; echo flood >&2; done"
    return {
        "servers": [
            {"name": "redis-1", "args": redis_in("redis-1"), "ready": f"unix:{folder}/redis-1/redis.sock"},
            {"name": "redis-2", "args": redis_in("redis-2"), "ready": "output:ready to accept"},
            {"name": "nginx-1", "args": argv(arena, "nginx.sh", str(folder / "nginx-1")),
             "ready": f"unix:{folder}/nginx-1/nginx.sock", "depends_on": ["redis-1"]},
            {"name": "nginx-2", "args": ["nginx", "-c", str(nginx_conf), "-e", f"{folder}/nginx-2/error.log"],
             "ready": f"unix:{folder}/nginx-2/front.sock", "depends_on": ["redis-1", "redis-2"]},
            {"name": "ping-1", "args": [ping, "-i", "0.2", "127.0.0.1"], "ready": "output:bytes from"},
            {"name": "ping-2", "args": [ping, "127.0.0.1"], "log_output": 10, "depends_on": ["nginx-2"]},
        ],
        "stubborn": [
            {"name": "ignores-1", "args": argv(arena, "ignore_signals.py")},
            {"name": "ignores-2", "args": argv(arena, "ignore_signals.py")},
            {"name": "daemonizes-1", "args": argv(arena, "daemon.py")},
            {"name": "daemonizes-2", "args": argv(arena, "daemon.py")},
            {"name": "sessions", "args": argv(arena, "tree_of_sessions.py")},
            {"name": "chain", "args": argv(arena, "chain.py")},
            {"name": "floods-1", "args": argv(arena, "chatter.py")},
            {"name": "floods-2", "args": ["/bin/sh", "-c", flood], "log_output": 10},
            {"name": "floods-3", "args": ["yes"], "recent_output": 0, "stdout": -3},
        ],
        "failing": [
            {"name": "crashes-1", "args": ["false"]},
            {"name": "crashes-2", "args": ["/bin/sh", "-c", "sleep 1000 & sleep 0.05; kill -SEGV $$"]},
            {"name": "leaves-a-daemon", "args": program("daemon.py", "/dev/null", "exit"),
             "ready": "output:left"},
            {"name": "never-ready", "args": ["sleep", "1000"],
             "ready": "file:/no/such", "ready_timeout": 0.2},
            {"name": "no-program", "args": ["/no/such/program"]},
        ],
    }  # fmt: skip


def host(*, groups: dict[str, list[dict[str, Any]]], grace: float) -> None:
    """Run a tree until the test says how to end; say what came of it."""
    import queue

    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tree = muontrap.Supervisor(
        [
            muontrap.Supervisor(
                [
                    muontrap.Daemon(options.pop("args"), delay_to_sigkill=grace, **options)
                    for options in children
                ],
                name=name,
                max_restarts=10**6,
                depends_on=[] if name == "servers" else ["servers"],
            )
            for name, children in groups.items()
        ],
        on_event=events.put,
    )
    with contextlib.suppress(TimeoutError):
        tree.start(timeout=0)
    stand, fall = ({f"{name}/{each['name']}" for each in groups[name]} for name in ("servers", "failing"))
    # Those of "stubborn" say it themselves.
    while stand or fall:
        event = events.get()
        {"ready": stand, "exited": fall}.get(event.kind, set()).discard(event.name)
    say(pids={each.name: each.pid for each in tree.which_children()})
    order = hear()
    if order == "fork":
        if not os.fork():
            signal.pause()
        order = "sigkill"
    if order == "stop":
        begin, clock = time.monotonic(), time.time()
        tree.stop()
        took = time.monotonic() - begin
        late = [events.get() for _ in range(events.qsize())]
        exits = [[event.name, event.when - clock] for event in late if event.kind == "exited"]
        say(took=took, exits=exits, states=[each.state for each in tree.which_children()])
        hear()
    else:
        die(order)


def start(arena: Arena) -> tuple[Host, dict[str, int | None]]:
    """A host whose whole tree stands, and has had failures."""
    groups = daemons(arena)
    assert sum(map(len, groups.values())) == 20
    started = arena.host(host, groups=groups, grace=GRACE)
    pids = started.hear(bound=40)["pids"]
    arena.wait_ready(SAY_READY)
    for name in ("redis-server", "nginx", "ping", "yes"):
        assert arena.named(name), name
    return started, pids


def own(arena: Arena, host: Host) -> set[int]:
    """The host, and its guard with its watch: no daemon."""
    return {host.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}


@pytest.mark.parametrize("how", ["sigkill", "sys-exit", "segv", "fork"])
def test_nothing_of_a_tree_outlives_its_host(how: str, arena: Arena, measure: Measure) -> None:
    started, _ = start(arena)
    assert len(arena.left()) > 30  # nginx's workers, trees of sessions ...
    if how == "sigkill":
        killed = started.signal(signal.SIGKILL)
    else:
        killed = started.order("sigkill" if how == "fork" else how)
    started.wait_end()
    measure(arena.wait_left(bound=WITHIN) - killed)


def test_a_stop_in_order_leaves_nothing_and_says_so_when_it_is_true(arena: Arena, measure: Measure) -> None:
    started, pids = start(arena)
    answer = started.ask("stop")
    arena.assert_left(own(arena, started))
    assert not any(map(is_alive, filter(None, pids.values())))
    assert set(answer["states"]) == {"stopped"}
    measure(answer["took"])
    # Two groups one after the other, of daemons that take a grace: not the sum of eight.
    assert answer["took"] < 2 * GRACE + BOUND
    when = {name.removeprefix("servers/"): seconds for name, seconds in answer["exits"]}
    servers = [seconds for name, seconds in when.items() if name.startswith(("redis", "nginx", "ping"))]
    assert len(servers) == 6
    assert max(when["stubborn"], when["failing"]) <= min(servers)
    assert when["ping-2"] <= when["nginx-2"] <= min(when["redis-1"], when["redis-2"])
    assert when["nginx-1"] <= when["redis-1"]
    assert max(when.values()) == when["servers"]


# --- The guard


def host_of_five(*, max_seconds: float) -> None:
    daemons = [muontrap.Daemon(["sleep", "1000"], name=str(number)) for number in range(5)]
    tree = muontrap.Supervisor(
        daemons,
        max_restarts=1,
        max_seconds=max_seconds,
        on_event=lambda event: event.kind in ("ready", "gave-up") and say(kind=event.kind, why=event.why),
    )
    tree.start()
    try:
        tree.wait()
    except muontrap.SupervisorFailed as error:
        say(kind="failed", why=str(error))
    hear()


def hear_ready(host: Host) -> None:
    assert {host.hear()["kind"] for _ in range(5)} == {"ready"}


def test_the_death_of_the_guard_is_one_failure_of_all_its_daemons(arena: Arena) -> None:
    started = arena.host(host_of_five, max_seconds=1000)
    hear_ready(started)
    guard, before = arena.the("muontrap-guard"), set(arena.named("sleep"))
    assert len(before) == 5
    os.kill(guard, signal.SIGKILL)
    hear_ready(started)
    after = set(arena.named("sleep"))
    assert len(after) == 5
    assert not before & after
    second = arena.the("muontrap-guard")
    assert second != guard
    os.kill(second, signal.SIGKILL)
    heard = [started.hear(), started.hear()]
    assert [each["kind"] for each in heard] == ["gave-up", "failed"]
    assert "more than 1 restarts in 1000 s" in heard[1]["why"]
    assert "the guard died" in heard[1]["why"]
    arena.wait_left(own(arena, started))


def test_deaths_of_guards_that_are_far_apart_are_survived(arena: Arena) -> None:
    started = arena.host(host_of_five, max_seconds=0.01)
    hear_ready(started)
    for _ in range(3):
        os.kill(arena.the("muontrap-guard"), signal.SIGKILL)
        hear_ready(started)
    assert len(arena.named("sleep")) == 5


# --- A crash loop


def crash_loop_host() -> None:
    import logging

    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("muontrap").addHandler(handler)
    logging.getLogger("muontrap").setLevel(logging.DEBUG)
    starts = []

    def note(event: Any) -> None:
        if event.kind in ("started", "restarted"):
            starts.append(event.when)

    with muontrap.Supervisor([muontrap.Daemon(["false"])], max_restarts=10**6, on_event=note):
        while order := hear():
            say(records=len(records), starts=starts)
            if order == "end":
                break


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_a_crash_loop_gets_slower_costs_little_and_does_not_flood_the_log(
    arena: Arena, measure: Measure
) -> None:
    """With no backoff it would be a hundred failures each second, and more."""
    seconds = 4.0
    started = arena.host(crash_loop_host)
    started.ask("begin")
    ours = [started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")]
    before, begin = sum(map(cpu_seconds, ours)), time.monotonic()
    time.sleep(seconds)
    spent, took = sum(map(cpu_seconds, ours)) - before, time.monotonic() - begin
    answer = started.ask("end")
    measure(spent / took)
    assert spent / took < 0.05
    starts = answer["starts"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert 4 <= len(gaps) <= 6  # after 0.1, 0.3, 0.7, 1.5, 3.1 s
    assert all(gap >= 0.1 * 2**failures for failures, gap in enumerate(gaps)), gaps
    assert answer["records"] <= 3 * len(starts)
