#!/bin/sh
# The suite; what it prints goes to the console, what it finds to /results.
cd /payload
export NVME_ASYNC_LAB=1
folders=tests/vm
[ -d tests/conformance ] && folders="$folders tests/conformance"
# shellcheck disable=SC2086
exec python -X faulthandler -m pytest -c pyproject.toml --rootdir /payload -p no:cacheprovider -v --color=no --tb=short \
    --durations=10 --junitxml=/results/junit.xml "$@" $folders
