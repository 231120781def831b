"""Any bytes in place of a cgroup's files are statistics, or raise ProtocolError; never more."""

from __future__ import annotations

import harness

from muontrap.errors import ProtocolError
from muontrap.logic import accounting

FILES_V1 = [name for names in accounting.FILES_V1.values() for name in names]


def target(data: bytes) -> None:
    """Give the bytes to every parser, as every file, one at a time."""
    for parse in (accounting.number, accounting.number_v1, accounting.flat_keyed, accounting.nested_keyed):
        try:
            parse(data, "a file")
        except ProtocolError as error:
            _names("a file", error)
    found = [accounting.CgroupStatistics()]
    for name in accounting.FILES_V2:
        try:
            found.append(accounting.statistics_v2({name: data}))
        except ProtocolError as error:
            _names(name, error)
    for name in FILES_V1:
        try:
            found.append(accounting.statistics_v1({name: data}, 100))
        except ProtocolError as error:
            _names(name, error)
    for statistics in found:
        assert accounting.merge(found[0], statistics) == statistics
        assert accounting.out_of_memory(statistics) in ("", "limit", "outside")


def _names(name: str, error: ProtocolError) -> None:
    if name not in str(error):
        raise error


def corpus() -> list[bytes]:
    """What kernels write."""
    return [
        *(b"4096\n", b"max\n", b"-1\n", b"9223372036854771712\n"),
        b"low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n",
        b"usage_usec 8917\nuser_usec 60\nsystem_usec 28\nnr_periods 3\nnr_throttled 1\nthrottled_usec 9\n",
        b"8:16 rbytes=1459200 wbytes=3147 rios=192 wios=353 dbytes=0 dios=0\n8:0 253:0 rbytes=1 depth=max\n",
        b"some avg10=0.59 avg60=0.14 avg300=0.02 total=45017361\nfull avg10=0.00 avg60=0.00 total=0\n",
        b"8:0 Read 4096\n8:0 Write 0\n8:0 Sync 4096\n8:0 Total 4096\nTotal 4096\n",
    ]


if __name__ == "__main__":
    harness.run(target, corpus())
