"""A host program, as yours might be: it runs ping, with its output shown, until somebody stops it."""

import muontrap

with muontrap.Launcher(["ping", "-i", "0.2", "localhost"]).launch() as ping:
    print(f"ping is process {ping.pid}", flush=True)
    ping.wait()
