#!/run/vm/busybox sh
# The guest's PID 1 in the host's root: devices, cgroups, then the command, and its status.
# PATH has the host's own tools, so what must be busybox's is called by its path.
b=/run/vm/busybox

$b mkdir -p /dev/pts /dev/shm /dev/net
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$b ln -sf pts/ptmx /dev/ptmx
$b mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$b ln -sf /proc/self/fd /dev/fd
$b ln -sf /proc/self/fd/0 /dev/stdin
$b ln -sf /proc/self/fd/1 /dev/stdout
$b ln -sf /proc/self/fd/2 /dev/stderr
# Nodes that udev would make; opening one loads its module.
[ -e /dev/fuse ] || $b mknod /dev/fuse c 10 229
$b chmod 666 /dev/fuse
$b mknod -m 666 /dev/net/tun c 10 200
$b mknod /dev/loop-control c 10 237
echo /run/vm/modprobe >/proc/sys/kernel/modprobe

# Cgroups as /run/vm/hierarchy asks for ($v1, $unified: see guest.py).  The v1 ones come first: the
# unified hierarchy gets every controller that is on no other.
. /run/vm/hierarchy
top=/sys/fs/cgroup
fail() { # the caller shows the end of the console
    echo "vm: $*" >/dev/console
    $b halt -f
}
if [ -n "$v1" ]; then
    $b mount -t tmpfs -o mode=755 tmpfs $top
    must=yes
    # shellcheck disable=SC2016 # an awk program
    [ "$v1" != "*" ] || { must= v1=$($b awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups); }
    for controller in $v1; do
        $b mkdir $top/$controller
        if ! $b mount -t cgroup -o $controller $controller $top/$controller 2>/dev/null; then
            [ -z "$must" ] || fail "this kernel has no v1 hierarchy with $controller"
            $b rmdir $top/$controller
        fi
    done
    [ ! -e $top/cpuset ] || echo 1 >$top/cpuset/cgroup.clone_children # or no process may join
fi
if [ -n "$unified" ]; then
    $b mkdir -p $unified
    $b mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 $unified
    for controller in $($b cat $unified/cgroup.controllers); do
        echo "+$controller" >$unified/cgroup.subtree_control
    done
fi

for letter in a b c d; do # User-Mode Linux names its disks otherwise
    [ ! -e /dev/ubd$letter ] || $b ln -s ubd$letter /dev/vd$letter
done
$b grep -q supervise.disks /proc/cmdline && $b modprobe virtio_blk
$b hostname vm
$b ip link set lo up

# The command is this PID 1's child, in a cgroup of its own in every hierarchy, as a service would be.
join=
for group in $([ -z "$v1" ] || echo $top/*) $unified; do
    $b mkdir -p "$group/command"
    join="$join echo 0 >$group/command/cgroup.procs;"
done
. /run/vm/report
$b halt -f
