#!/bin/sh
# The tests of block devices; what they print goes to the console, what they find to /results.
cd /payload || exit 1
modprobe ublk_drv || exit 1
exec python -X faulthandler -m pytest -c pyproject.toml --rootdir /payload -p no:cacheprovider -o timeout=0 -v --color=no --tb=short \
    --durations=10 --junitxml=/results/junit.xml "$@" tests/disk
