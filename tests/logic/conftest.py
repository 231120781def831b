"""How thorough Hypothesis is: ten times as much with MUONTRAP_FULL, less with the other Pythons of CI."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = 30 if os.environ.get("MUONTRAP_TEST_PAIRS") == "few" else 100

settings.register_profile(
    "muontrap",
    deadline=None,  # of one example: the machine may be busy
    max_examples=1000 if os.environ.get("MUONTRAP_FULL") else EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("muontrap")
