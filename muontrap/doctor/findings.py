"""What the facts mean: findings, each a yes or a no, and for a no what would change it."""

from __future__ import annotations

from typing import NamedTuple

from muontrap.logic.limits import (
    Limits,
    controller_of,
    settings_v1,
    settings_v2,
    without_counterpart_v1,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from muontrap.doctor.probes import Facts, Group
    from muontrap.logic.hierarchy import Place

OLDEST = (5, 4)  # waitid with P_PIDFD

# Every option, with any value: which of them a version has is the library's to say.
EVERY = Limits(
    memory_max="1G",
    memory_high="1G",
    memory_low=0,
    memory_min=0,
    memory_swap_max=0,
    memory_oom_group=True,
    cpu_max=1,
    cpu_weight=100,
    cpu_idle=False,
    pids_max=100,
    io_weight=100,
    io_max={"8:0": {"rbps": "1G"}},
    cpuset_cpus="0",
    cpuset_mems="0",
)
# What limits need, the most wanted first; and what a kernel without it was built without.
_BUILT = {
    "memory": "CONFIG_MEMCG",
    "cpu": "CONFIG_CFS_BANDWIDTH",
    "pids": "CONFIG_CGROUP_PIDS",
    "io": "CONFIG_BLK_CGROUP",
    "cpuset": "CONFIG_CPUSETS",
}
# capabilities(7): number, and what it is for here.
_CAPABILITIES = {
    "SETUID": (7, "user="),
    "SETGID": (6, "user=, group=, extra_groups="),
    "KILL": (5, "to end what has become another user's, as by sudo"),
    "SYS_RESOURCE": (24, "rlimits= above the hard limits, oom_score_adj= below the host's"),
    "SYS_NICE": (23, "nice= below the host's; to be faster than a fork bomb"),
    "SYS_ADMIN": (21, "to mount a cgroup hierarchy; muontrap itself never does"),
}


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        name: "SECTION.NAME"; it does not change with muontrap's version.
        ok: whether that is there, and can be used.
        detail: what was seen.
        remedies: of a no: each by itself would change it, as far as that can be told; may be none.
        data: more of a controller.
    """

    name: str
    ok: bool
    detail: str
    remedies: tuple[str, ...] = ()
    data: dict[str, object] | None = None


def findings(facts: Facts) -> list[Finding]:
    """Return all findings, section by section."""
    return [
        *_of_default(facts),
        *_of_kernel(facts),
        *_of_cgroups(facts),
        *_of_controllers(facts),
        *_of_privileges(facts),
    ]


def default_works(found: list[Finding]) -> bool:
    """Tell whether the containment that every command has is whole."""
    return all(finding.ok for finding in found if finding.name.startswith("default."))


def _of_default(facts: Facts) -> Iterator[Finding]:
    trial = facts.trial
    if trial.error:
        yield Finding("default.guard", False, trial.error)
    else:
        yield Finding("default.guard", True, f"started, and a command with it, in {trial.seconds:.3f} s")
    locks = "no limit" if facts.locks is None else str(facts.locks)
    if "tag" in trial.layers:
        yield Finding("default.tag", True, f"{facts.tag_width} bits of RLIMIT_LOCKS, hard limit: {locks}")
    elif facts.tag_width:
        yield Finding("default.tag", False, "not tried, for there was no guard")
    else:
        remedies = ("sudo prlimit --pid $$ --locks=unlimited", "LimitLOCKS=infinity in the unit of systemd")
        yield Finding("default.tag", False, f"the hard limit RLIMIT_LOCKS is too low: {locks}", remedies)
    if trial.error:
        yield Finding("default.subreaper", False, "not tried, for there was no guard")
    elif trial.left:
        yield Finding("default.subreaper", False, "what a command had left behind lived on")
    else:
        yield Finding("default.subreaper", True, "what a command had left behind was found and ended")


def _of_kernel(facts: Facts) -> Iterator[Finding]:
    wanted = ".".join(map(str, OLDEST))
    ok = release(facts.release) >= OLDEST
    yield Finding("kernel.release", ok, facts.release, () if ok else (f"Linux {wanted} or later",))
    yield Finding(
        "kernel.pidfd",
        not facts.pidfd,
        facts.pidfd or "pidfd_open, pidfd_send_signal",
        (f"Linux {wanted} or later", "docker run --security-opt seccomp=unconfined") if facts.pidfd else (),
    )
    for name, there, yes, no, remedy in (
        (
            "close_range",
            facts.close_range,
            "there",
            "descriptors are closed one by one",
            "Linux 5.9 or later",
        ),
        (
            "children",
            facts.children,
            "/proc/PID/task/TID/children",
            "/proc is searched for children, which takes longer",
            "a kernel with CONFIG_PROC_CHILDREN",
        ),
    ):
        yield Finding(f"kernel.{name}", there, yes if there else no, () if there else (remedy,))
    if facts.cgroup_kill:
        yield Finding("kernel.cgroup_kill", True, "a v2 cgroup is killed in one step")
    elif facts.layout.unified:
        slow = "a cgroup is frozen and killed process by process"
        yield Finding("kernel.cgroup_kill", False, slow, ("Linux 5.14 or later",))
    else:
        yield Finding("kernel.cgroup_kill", False, "there is no v2 hierarchy", (_mount(facts),))


def _of_cgroups(facts: Facts) -> Iterator[Finding]:
    layout = facts.layout
    seen = [f"v2 at {layout.unified.point}"] if layout.unified else []
    seen += [f"v1 with {', '.join(layout.controllers)}"] if layout.controllers else []
    data: dict[str, object] = {"kind": layout.kind}
    if seen:
        yield Finding("cgroup.hierarchy", True, "; ".join(seen), data=data)
    else:
        yield Finding("cgroup.hierarchy", False, "none is mounted", (_mount(facts),), data)
    group = facts.group
    if group.base:
        yield Finding("cgroup.containment", True, f"v{group.version}, in {group.base}")
    else:
        yield Finding("cgroup.containment", False, _reasons(group), _remedies(facts, group))


def _of_controllers(facts: Facts) -> Iterator[Finding]:
    rest = [name for name in facts.controllers if name not in _BUILT and name != "blkio"]
    for name in [*_BUILT, *sorted(rest)]:
        group = facts.controllers.get("blkio" if name == "io" and "blkio" in facts.controllers else name)
        yield _of_controller(facts, name, group) if group else _of_missing_controller(facts, name)


def _of_controller(facts: Facts, name: str, group: Group) -> Finding:
    able = limits_of(name, group)
    data: dict[str, object] = {"version": group.version, "base": group.base or None, "limits": able}
    if not group.base:
        return Finding(f"controller.{name}", False, _reasons(group), _remedies(facts, group), data)
    lacking = [
        option for option in EVERY.as_dict() if controller_of(option, 2) == name and option not in able
    ]
    parts = [f"v{group.version}, in {group.base}", *([", ".join(able)] if able else [])]
    parts += [f"but not {', '.join(lacking)}"] if lacking else []
    return Finding(f"controller.{name}", True, "; ".join(parts), data=data)


def _of_missing_controller(facts: Facts, name: str) -> Finding:
    data: dict[str, object] = {"version": None, "base": None, "limits": []}
    v1 = "blkio" if name == "io" else name
    built = f"a kernel with {_BUILT[name]}"
    remedies: tuple[str, ...]
    if facts.listed.get(v1) is False:
        detail, remedies = "this kernel was booted without it", (f"boot without cgroup_disable={v1}",)
    elif facts.layout.unified:
        detail = f"{facts.layout.unified.point} has no such controller"
        remedies = (built, f"if this is a container: +{name} in its cgroup.subtree_control, from outside")
    elif v1 in facts.listed:
        detail, remedies = "it is not mounted", (_mount(facts),)
    else:
        detail, remedies = "it is not in /proc/cgroups", (built,)
    return Finding(f"controller.{name}", False, detail, remedies, data)


def _of_privileges(facts: Facts) -> Iterator[Finding]:
    reason, _, remedy = facts.namespaces.partition(": ")
    yield Finding(
        "privilege.user_namespaces",
        not reason,
        reason or "can be made; muontrap needs none",
        (remedy,) if facts.namespaces.endswith("=10000") else (),
    )
    for name, (number, purpose) in _CAPABILITIES.items():
        ok = bool(facts.capabilities >> number & 1)
        how = "sudo COMMAND" if facts.uid else f"if this is a container: docker run --cap-add {name}"
        yield Finding(f"privilege.CAP_{name}", ok, purpose, () if ok else (how,))


def limits_of(controller: str, group: Group) -> list[str]:
    """Return the options of `Limits` that can be set, by v2's name of the controller."""
    lacking = set(without_counterpart_v1(EVERY)) if group.version == 1 else set()
    for setting in settings_v1(EVERY) if group.version == 1 else settings_v2(EVERY):
        files = {setting.file, setting.instead.file if setting.instead else setting.file}
        if group.files is not None and not files & group.files:
            lacking.add(setting.option)
    return [name for name in EVERY.as_dict() if controller_of(name, 2) == controller and name not in lacking]


def release(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a kernel's version; 0 for what is no number."""
    return tuple(int(word) if word.isdigit() else 0 for word in text.replace("-", ".").split(".")[:2])


def _reasons(group: Group) -> str:
    return "; ".join(reason.partition(": ")[0] for reason in group.reasons)


def _remedies(facts: Facts, group: Group) -> tuple[str, ...]:
    if facts.layout.kind == "none":
        return (_mount(facts),)
    given = _given_to_user(facts, group) if facts.uid else ()
    own = [remedy for reason in group.reasons if (remedy := reason.partition(": ")[2])]
    return given or tuple(dict.fromkeys(own))


def _given_to_user(facts: Facts, group: Group) -> tuple[str, ...]:
    """Return what gives an ordinary user a place for groups, where that is what is missing."""
    unified = facts.layout.unified
    if group.version == 1 or not unified:
        return _create(facts)
    has_place = facts.group.base and facts.group.version == 2
    return _delegate(facts, unified) if unified.writable and not has_place else ()


def _delegate(facts: Facts, unified: Place) -> tuple[str, ...]:
    point = unified.point.rstrip("/")
    top = f"{point}/muontrap"
    given = [top, *(f"{top}/{file}" for file in ("cgroup.procs", "cgroup.subtree_control", "shell"))]
    known = facts.controllers
    names = [f"+{name}" for name in _BUILT if name in known and known[name].version == 2]
    steps = [f"echo '{' '.join(names)}' | sudo tee {point}/cgroup.subtree_control"] if names else []
    steps += [
        f"sudo mkdir -p {top}/shell",
        f"sudo chown {facts.user} {' '.join(given)} {top}/shell/cgroup.procs",
        f"echo $$ | sudo tee {top}/shell/cgroup.procs",
    ]
    scope = ("systemd-run --user --scope -p Delegate=yes COMMAND",) if facts.systemd else ()
    return (*scope, " && ".join(steps))


def _create(facts: Facts) -> tuple[str, ...]:
    names = ",".join(name for name, place in facts.layout.controllers.items() if place.writable)
    if not names:
        return ()
    create = f"sudo cgcreate -a {facts.user} -t {facts.user} -g {names}:muontrap"
    return (f"{create} && export MUONTRAP_CGROUP_BASE=muontrap",)


def _mount(facts: Facts) -> str:
    point = "/sys/fs/cgroup/unified" if facts.layout.controllers else "/sys/fs/cgroup"
    return f"sudo mkdir -p {point} && sudo mount -t cgroup2 none {point}"
