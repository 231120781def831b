"""Layers of containment switched off in a host program, so that the others have to do without them.

muontrap has no switch for that: the host starts its guard with another line of code, which first
replaces what the layer hangs on; and the host is told that the machine has fewer hierarchies.
"""

from __future__ import annotations

from muontrap.host import cgroups, link
from muontrap.host.delegation import discover
from muontrap.logic.hierarchy import Layout

# Lines for the process that becomes the watch and the guard.
_IN_THE_GUARD = {
    # No value fits into the limit that bears the mark.
    "mark": "program.usable_format = lambda: None",
    # Orphans go to process 1, and nobody looks at what hangs below whom.
    "descent": "program.process.set_child_subreaper = lambda: None; "
    "family.descendants = tagged.descendants = watch.descendants = lambda *_, **__: []",
    # As before Linux 5.14.
    "cgroup.kill": "write = groups.Directory.write_if_there; groups.Directory.write_if_there = "
    "lambda self, name, value: name != 'cgroup.kill' and write(self, name, value)",
}
_GUARD = (
    "import sys; sys.path += sys.argv[4:]; "
    "from muontrap.guard import __main__ as program, family, watch; "
    "from muontrap.containment import groups, tagged; {}; program.run()"
)
_IN_THE_HOST = {"v2", "freezer"}


def layout_without(*layers: str) -> Layout:
    """What this machine would have without some of its hierarchies."""
    found = discover()
    return Layout(
        unified=None if "v2" in layers else found.unified,
        controllers={name: at for name, at in found.controllers.items() if name not in layers},
    )


def switch_off(*layers: str) -> None:
    """Let this program's guards, of which none may run yet, do without these layers."""
    assert set(layers) <= _IN_THE_GUARD.keys() | _IN_THE_HOST
    link._BOOTSTRAP = _GUARD.format("; ".join(_IN_THE_GUARD.get(layer, "pass") for layer in layers))
    layout = layout_without(*layers)
    vars(cgroups)["discover"] = lambda: layout
