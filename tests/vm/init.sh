#!/bin/busybox sh
# The guest's PID 1 in the initrd: puts the host's root under an overlay and goes on there.
# /engine (of this run) mounts the host's root on /lower and defines how to turn the machine off;
# $root: the directory of the host that is this guest's root, empty for the host's own.
/bin/busybox mkdir -p /bin /proc /sys /dev /lower /rw /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /early); do insmod "$module"; done

root=
die() {
    echo "vm: $*" >/dev/console
    turn_off
}
. /engine

mount -t tmpfs -o size=75%,mode=755 tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o "lowerdir=/lower$root,upperdir=/rw/upper,workdir=/rw/work" root /new ||
    die "the overlay over the host's root cannot be mounted"

cd /new || die "no new root"
mkdir -p proc sys dev run scratch lib/modules
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs scratch
mkdir -p var/lib/supervise # what an instance on the host keeps there meanwhile is not the guest's
mount -t tmpfs -o mode=755 tmpfs var/lib/supervise
mkdir -p run/vm
cp /bin/busybox run/vm/busybox
cp /stage2 /report /run.sh /hierarchy run/vm/
[ ! -e /terminal ] || cp /terminal run/vm/
ln -s busybox run/vm/modprobe
mount --bind /lower/proc lib/modules # the kernel's own modules: see guest.py
. /binds

mount --move /proc proc
mount --move /sys sys
mount --move /dev dev
exec switch_root /new /run/vm/stage2
