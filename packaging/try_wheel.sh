#!/bin/sh
# Installs wheels as a user does, and has them work:
#
#     packaging/try_wheel.sh PYTHON FOLDER WHEEL...
#
# Programs are looked for in the new environment alone, so there is no compiler, and a dependency
# that would have to be compiled is an error. Once all is installed there is no network either, if
# the system lets this script leave it. FOLDER is made anew.
set -eu
python=$1
folder=$2
shift 2
unshare=$(command -v unshare || true)
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet --only-binary :all: "$@"
export PATH="$folder/bin"
cd "$folder"
python -c "from adapter import embedded_model; embedded_model.fetch()"
if [ -n "$unshare" ] && "$unshare" --net "$folder/bin/python" -c ""; then
    alone="$unshare --net"
else
    alone=""
fi
$alone "$folder/bin/pyllama" doctor
$alone "$folder/bin/pyllama" demo "What is the capital of France?"
