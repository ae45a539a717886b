#!/bin/sh
# Prepares the guest as a host of the driver should be, installs the wheel, and runs the payload's command.
set -eu
modprobe -a vfio-pci vfio_iommu_type1
echo 64 >/proc/sys/vm/nr_hugepages
python -m pip install --quiet --no-index --no-deps --no-compile /payload/*.whl
exec /payload/command
