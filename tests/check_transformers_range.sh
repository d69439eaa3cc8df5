#!/bin/sh
# Run the torch plugin's tests with the oldest transformers that pyproject.toml allows (or the version given); `make test` runs them with
# the newest. The other version goes into a folder of its own, ahead of the installed one on the path.
#
#     tests/check_transformers_range.sh [VERSION]
set -eu
version="${1:-5.5.3}"
python="${PYTHON:-.venv/bin/python}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$python" -m pip install --quiet --target "$folder" "transformers==$version"
PYTHONPATH="$folder" "$python" -c "import transformers; assert transformers.__version__ == '$version', transformers.__version__"
PYTHONPATH="$folder" "$python" -m pytest tests/plugins/torch -q
