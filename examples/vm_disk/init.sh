#!/bin/busybox sh
# Process 1 of the guest: writes files to its disk, reads each back past the page cache, and compares. A line on the console ends it.
/bin/busybox mkdir -p /proc /dev /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox --install -s /bin
(read -r _ </dev/console && touch /run/stop) &
round=0
result=failed
while :; do
    file=/file$((round % 8))
    head -c 131072 /dev/urandom >/run/wanted && cat /run/wanted >$file && sync || break
    echo 3 >/proc/sys/vm/drop_caches
    cmp /run/wanted $file || break
    round=$((round + 1))
    echo "guest: verified $round"
    if [ -e /run/stop ]; then
        dmesg | grep -E 'nvme.*(timeout|reset|error)|I/O error|EXT4-fs (error|warning)' || result=good
        break
    fi
done
mount -o remount,ro / || result=failed
echo "guest: ended, $result"
poweroff -f
