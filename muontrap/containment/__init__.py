"""What belongs to a command: found, signalled, and proved to be gone. Thin I/O over /proc and pidfds."""
