#!/bin/sh
# Run the torch plugin's tests with the oldest torch and transformers that pyproject.toml allows, or with the releases given; `make test`
# runs them with the newest. They go into a folder of their own, ahead of the installed ones on the path. On Linux, torch may bring 5 GB of
# CUDA libraries along; an index of CPU builds in pip's own settings saves them.
#
#     tests/check_oldest.sh [RELEASE ...]        such as transformers==5.5.3
set -eu
[ $# -gt 0 ] || set -- "torch==2.6.0" "transformers==5.5.3"
python="${PYTHON:-.venv/bin/python}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$python" -m pip install --quiet --target "$folder" "$@"
for release in "$@"; do
    PYTHONPATH="$folder" "$python" -c "
import importlib.metadata, sys
name, wanted = sys.argv[1].split('==')
found = importlib.metadata.version(name)
sys.exit(found.split('+')[0] != wanted and f'{name} is {found}, not {wanted}')" "$release"
done
PYTHONPATH="$folder" "$python" -m pytest tests/plugins/torch -q
