#!/bin/sh
# Prepares the guest as a host of the driver should be, installs the wheel, and runs the payload's command.
# Without a wheel the guest is not to drive anything itself, and is left as it is.
set -eu
for wheel in /payload/*.whl; do
    [ -e "$wheel" ] || continue
    modprobe -a vfio-pci vfio_iommu_type1
    echo 64 >/proc/sys/vm/nr_hugepages
    python -m pip install --quiet --no-index --no-deps "$wheel"
done
exec /payload/command
