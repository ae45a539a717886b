#!/bin/sh
# Process 1 of the guest: mounts, modules, the payload, its command, the results, power off. Part of the image.
export PATH=/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /payload /results
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
chmod 1777 /dev/shm /tmp
hostname guest
ip link set lo up 2>/dev/null

# A kernel that is not the image's own brings its modules on a drive, which may come later than this.
tries=0
while [ ! -d "/lib/modules/$(uname -r)" ] && [ $tries -lt 100 ]; do
    for controller in /sys/class/nvme/*; do
        [ "$(tr -d ' ' <"$controller/serial")" = modules ] && mount -o ro "/dev/${controller##*/}n1" /lib/modules
    done
    tries=$((tries + 1))
    sleep 0.1
done
modprobe -a virtio_pci virtio_blk

# Wait (at most 10 s) for a virtio disk by its serial number, which says what it is for.
disk() {
    tries=0
    while [ $tries -lt 100 ]; do
        for candidate in /sys/block/vd*; do
            if [ "$(cat "$candidate/serial" 2>/dev/null)" = "$1" ]; then
                echo "/dev/${candidate##*/}"
                return
            fi
        done
        tries=$((tries + 1))
        sleep 0.1
    done
}

payload=$(disk payload)
results=$(disk results)
tar -xf "$payload" -C /payload
cd /payload || exit 1
setsid /bin/sh /payload/guest/main.sh
code=$?
printf '{"exit": %d}\n' "$code" >/results/status.json
dmesg >/results/dmesg.log
tar -C /results -cf "$results" .
sync
echo o >/proc/sysrq-trigger
sleep 5
echo b >/proc/sysrq-trigger
sleep 60
