"""The guard and its watch: programs with one thread, which import nothing that they don't need."""
