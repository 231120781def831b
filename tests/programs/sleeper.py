"""Sleeps, and dies of the first signal."""

from ready import pause_for_ever, ready

ready()
pause_for_ever()
