#!/bin/sh
# Becomes PID 1 of one test host: its root is ours, then systemd takes over. Arguments: the root, the host's name.
# Runs in mount, PID, UTS, IPC, cgroup and network namespaces of its own.
set -eu
root=$1
name=$2
hostname "$name"
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755,ro tmpfs sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir -p dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
touch dev/console
mount --bind /dev/null dev/console
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/systemd .old
echo spore >run/systemd/container
pivot_root . .old
umount -l /.old
rmdir /.old 2>/dev/null || true
exec env -i container=spore PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb /sbin/init --show-status=no
