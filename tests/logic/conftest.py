"""How thorough Hypothesis is: ten times as many examples when MUONTRAP_FULL is set."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "muontrap",
    deadline=None,  # of one example: the machine may be busy
    max_examples=1000 if os.environ.get("MUONTRAP_FULL") else 100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("muontrap")
