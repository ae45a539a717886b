#!/bin/sh
# with-drive.sh ROLE COMMAND…: the controller of that serial number goes to vfio-pci; the command gets its address as --uri.
set -eu
role=$1
shift
for controller in /sys/class/nvme/*; do
    if [ "$(tr -d ' ' <"$controller/serial")" = "$role" ]; then
        uri=pci:$(cat "$controller/address")
        nvme-async bind "$uri" >&2
        exec "$@" --uri "$uri"
    fi
done
echo "with-drive.sh: there is no controller with the serial number $role" >&2
exit 1
