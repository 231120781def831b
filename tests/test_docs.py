"""The documentation is true: generated pages are current, examples run and print what stands under them."""

from __future__ import annotations

import doctest
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from muontrap.errors import ContainmentError
from muontrap.host.cgroups import place
from muontrap.logic.command import Command

ROOT = Path(__file__).parent.parent
# A line before a block: <!-- needs root -->, <!-- needs cgroups --> or <!-- not run: why -->
BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>.+?) -->\n)?```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
BOUND = 30


def blocks() -> list[object]:
    found = []
    for name in ("README.md", "docs/tutorial.md", "docs/how-to.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(pytest.param(match, id=f"{name}:{line}"))
    return found


def need_cgroups() -> None:
    """Skip where there can't be limits."""
    command = Command(["true"], limits={"memory_max": "64M", "cpu_max": 0.5, "pids_max": 64})
    try:
        place(command, 1)
    except ContainmentError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks())
def test_example(block: re.Match[str], tmp_path: Path) -> None:
    marker = block["marker"] or ""
    if marker.startswith("not run: ") or (marker == "needs root" and os.geteuid() != 0):
        pytest.skip(marker)
    if marker == "needs cgroups":
        need_cgroups()
    assert marker in ("", "needs root", "needs cgroups")
    argv = [sys.executable, "-W", "error", "-X", "dev", "-c", block["code"]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BOUND,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    # From `__del__`, a warning is no exception; what asyncio says of a slow machine is neither.
    assert not re.search("Warning|Exception ignored|Error", done.stderr), done.stderr
    if block["output"] is not None:
        checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS
        example = doctest.Example(block["code"], block["output"])
        correct = checker.check_output(example.want, done.stdout, flags)
        assert correct, checker.output_difference(example, done.stdout, flags)


def test_every_block_is_found() -> None:
    """None is passed over because of its marker's or its output's form."""
    for name in ("README.md", "docs/tutorial.md", "docs/how-to.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        matches = list(BLOCK.finditer(text))
        assert len(matches) == text.count("```python")
        assert sum(match["output"] is not None for match in matches) == text.count("```text")
        assert sum(match["marker"] is not None for match in matches) == text.count("<!--")


@pytest.mark.parametrize("name", ["escalation", "limits"])
def test_generated_pages_are_current(name: str) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
    text = {path.stem: (path, page) for path, page in pages.items()}
    assert set(text) == {"escalation", "limits"}
    path, page = text[name]
    assert page() == path.read_text(encoding="utf-8"), "run docs/generate.py"


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
)
def test_links_within_the_project(page: str) -> None:
    for target, anchor in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
            }


def test_every_option_is_explained() -> None:
    from muontrap.logic.command import _CHECKERS

    of_run = {"args", "input", "capture_output", "max_output", "max_output_policy", "check"}
    of_launch = {"on_stdout", "on_stderr", "explicit_ack"}
    there = of_run | of_launch | {"into", "timeout"} | _CHECKERS.keys()
    text = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == there


def test_every_cited_fact_is_there() -> None:
    facts = (ROOT / "docs" / "explanation" / "kernel-facts.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^\*\*F(\d+)\.", facts, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    sources = [*ROOT.glob("muontrap/**/*.py"), *ROOT.glob("docs/**/*.md")]
    cited = {int(n) for path in sources for n in re.findall(r"\bF(\d+)\b", path.read_text(encoding="utf-8"))}
    assert cited <= set(numbers)
