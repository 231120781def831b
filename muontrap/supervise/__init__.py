"""Daemons and supervisors: long-running commands, started again as long as that makes sense."""
