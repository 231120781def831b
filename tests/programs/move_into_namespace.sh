# Leaves a daemon in the PID namespace of process $3: it becomes a child of that namespace's first process.
# Ends with 5 when the daemon has written to the FIFO $2, which it makes.
mkfifo "$2"
nsenter -t "$3" -U -p --preserve-credentials \
    sh -c "setsid sh -c 'echo moved >$1; echo >$2; exec sleep 1234' </dev/null >/dev/null 2>&1 &"
read -r _ <"$2"
exit 5
