"""`muontrap doctor`: the report on stdout, and its exit status."""

from __future__ import annotations

import sys

from muontrap.cli.report import fail
from muontrap.doctor.findings import default_works, findings
from muontrap.doctor.page import as_json, as_text
from muontrap.doctor.probes import look

UNFIT = 1


def examine(*, for_programs: bool) -> int:
    """Look, tell, and return 0 if the containment that every command has is whole, else 1."""
    facts = look()
    found = findings(facts)
    page = as_json(facts, found) if for_programs else as_text(facts, found)
    try:
        # A path may have bytes that are no text.
        sys.stdout.buffer.write(page.encode(errors="backslashreplace"))
        sys.stdout.flush()
    except OSError as error:
        return fail(f"stdout: {error.strerror}")
    return 0 if default_works(found) else UNFIT
