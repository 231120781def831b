# Becomes the parent of the first process of a new PID namespace. "exit": ends, and leaves the namespace running.
if [ "$2" = exit ]; then
    mkfifo "$3"
    setsid unshare -Upf sh -c "echo ready >$1; echo >$3; exec sleep 1000" </dev/null >/dev/null 2>&1 &
    read -r _ <"$3"
    exit 0
fi
exec unshare -Upf sh -c "echo ready >$1; exec sleep 1000"
