"""Decisions: values, machines, codecs and parsers, without I/O and without a clock."""
