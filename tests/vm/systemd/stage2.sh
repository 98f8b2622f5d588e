#!/run/vm/busybox sh
# Goes before systemd in the guest's Debian root: what it is to find in /run, then systemd itself.
b=/run/vm/busybox
echo /run/vm/modprobe >/proc/sys/kernel/modprobe

# Without an id it would take this for its first boot, and set up much.
$b tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
echo vm >/etc/hostname

units=/run/systemd/system
$b mkdir -p $units
cat() { $b cat "$@"; }
cat >$units/vm-command.service <<END
[Unit]
Description=The command of this guest
Requires=multi-user.target
After=multi-user.target

[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardInput=null
StandardOutput=null
StandardError=null
ExecStart=/run/vm/busybox sh /run/vm/report
END
# What neither kernel has, and what would ask at a terminal that nobody sees.
for unit in kmod-static-nodes.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
    getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
    e2scrub_all.timer; do
    $b ln -s /dev/null $units/$unit
done
exec /lib/systemd/systemd --unit=vm-command.service --show-status=no
