#!/run/vm/busybox sh
# Runs the command, after $join (shell commands, or nothing), and tells how it went: to be read by
# the guest's PID 1, or to be a service of systemd's.  Returns when the machine may be ended.
b=/run/vm/busybox

# Three ports: stdout, stderr, status.  And perhaps a fourth, the caller's terminal.
terminal=/dev/ttyS1
port=$(echo /dev/vport*p3)
port=${port%3}
if [ ! -e "${port}3" ]; then # User-Mode Linux
    port=/dev/ttyS
    terminal=/dev/ttyS0
    for i in 1 2 3; do $b stty -F $port$i raw -echo; done
fi
exec 9>"${port}3"
$b mkfifo /run/vm/out /run/vm/err
$b cat /run/vm/out >"${port}1" 9>&- &
out=$!
$b cat /run/vm/err >"${port}2" 9>&- &
err=$!

run="$join exec /bin/sh /run/vm/run.sh"
echo "begin $($b cut -d' ' -f1 /proc/uptime)" >&9
if [ -e /run/vm/terminal ]; then
    : >/run/vm/out
    : >/run/vm/err
    # shellcheck disable=SC2046 # the file holds "rows N cols N"
    $b stty -F $terminal sane $($b cat /run/vm/terminal)
    $b setsid -c /bin/sh -c "$run" <$terminal >$terminal 2>&1 9>&-
else
    $b setsid /bin/sh -c "$run" </dev/null >/run/vm/out 2>/run/vm/err 9>&-
fi
status=$?

tries=0 # a process the command left behind may hold the pipes open
while { $b kill -0 $out || $b kill -0 $err; } 2>/dev/null && [ $tries -lt 40 ]; do
    $b usleep 25000
    tries=$((tries + 1))
done
$b sync
echo "exit $status" >&9
$b sleep 9 # the caller ends the machine
