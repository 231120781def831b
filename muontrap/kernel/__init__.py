"""System calls: one function each, ints, bytes and descriptors in, a value or `OSError` out."""
