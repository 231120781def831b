# A real nginx, as a daemon, with its configuration in the folder $2. It returns when the daemon listens.
# The main process stays; with "exit" it ends.
cat >"$2/nginx.conf" <<END
daemon on;
pid $2/nginx.pid;
error_log $2/error.log;
worker_processes 2;
events { worker_connections 16; }
http {
    access_log off;
    client_body_temp_path $2; proxy_temp_path $2; fastcgi_temp_path $2; uwsgi_temp_path $2; scgi_temp_path $2;
    server { listen unix:$2/nginx.sock; }
}
END
/usr/sbin/nginx -p "$2" -c "$2/nginx.conf" -e "$2/error.log" || exit 1
echo ready >"$1"
[ "$3" = exit ] || exec sleep 1000
