#!/bin/sh
# The tests of the kernel's driver on our controllers, a reboot, and the tests of what must be so after it.
cd /payload || exit 1

run() {
    name=$1
    mark=$2
    shift 2
    python -X faulthandler -m pytest -c pyproject.toml --rootdir /payload -p no:cacheprovider -v --color=no --tb=short \
        --durations=10 --junitxml="/results/$name.xml" -m "$mark" "$@" tests/kernel
    code=$?
    [ "$code" = 5 ] && code=0 # no test was selected
    dmesg >"/results/dmesg-$name.log"
    return $code
}

# /results is on the root disk, so the guest remembers where it was.
if [ ! -e /results/first-exit ]; then
    run first "not after_reboot" "$@"
    echo $? >/results/first-exit
    sync
    exec python -c 'import ctypes; ctypes.CDLL(None).reboot(0x01234567)' # as reboot(8) does: with the devices' shutdown
fi
run second after_reboot "$@"
second=$?
first=$(cat /results/first-exit)
[ "$first" = 0 ] || exit "$first"
exit "$second"
