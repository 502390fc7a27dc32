#!/bin/sh
# Installs wheels as a user does, and has them work:
#
#     packaging/try_wheel.sh PYTHON FOLDER WHEEL...
#
# Programs are looked for in the new environment alone, so there is no compiler, and a dependency
# that would have to be compiled is an error. FOLDER is made anew.
set -eu
python=$1
folder=$2
shift 2
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "$@"
export PATH="$folder/bin"
cd "$folder"
# What the system may hold back: the index, once everything is installed.
${OFFLINE:-} pyllama doctor
${OFFLINE:-} pyllama demo "What is the capital of France?"
