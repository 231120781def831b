"""The report: as a page for people, and as JSON."""

from __future__ import annotations

import json

from muontrap.doctor.findings import default_works

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.doctor.findings import Finding
    from muontrap.doctor.probes import Facts

FORMAT = 1  # of the JSON; it grows by new keys and new findings alone
_TITLES = {
    "default": "Containment that every command has",
    "kernel": "Kernel",
    "cgroup": "Cgroups",
    "controller": "Limits, by controller",
    "privilege": "Privileges",
}


def as_text(facts: Facts, found: list[Finding]) -> str:
    """Return the page; remedies that several findings in a row share stand once, below the last."""
    system = f"Python {facts.python}, Linux {facts.release} {facts.machine}"
    lines = [f"muontrap {facts.version}, {system}, {facts.user} (uid {facts.uid})"]
    width = max(len(_short(finding)) for finding in found)
    section = ""
    for finding, after in zip(found, [*found[1:], None], strict=True):
        if _section(finding) != section:
            section = _section(finding)
            lines += ["", _TITLES[section]]
        lines.append(f"  {'yes' if finding.ok else 'no ':3}  {_short(finding):{width}}  {finding.detail}")
        if after is None or after.remedies != finding.remedies or _section(after) != section:
            lines += [f"       {'':{width}}  > {remedy}" for remedy in finding.remedies]
    return "\n".join([*lines, ""])


def as_json(facts: Facts, found: list[Finding]) -> str:
    """Return the same for programs. docs/reference/doctor.md has its form."""
    content = {
        "format": FORMAT,
        "muontrap": facts.version,
        "python": facts.python,
        "kernel": facts.release,
        "machine": facts.machine,
        "user": {"uid": facts.uid, "name": facts.user},
        "default_containment": default_works(found),
        "findings": [
            {
                "name": finding.name,
                "ok": finding.ok,
                "detail": finding.detail,
                "remedies": list(finding.remedies),
                **(finding.data or {}),
            }
            for finding in found
        ],
    }
    return json.dumps(content, indent=2) + "\n"


def _section(finding: Finding) -> str:
    return finding.name.partition(".")[0]


def _short(finding: Finding) -> str:
    return finding.name.partition(".")[2]
