#!/bin/sh
# This machine's cross compilers for 64-bit Arm, a Python environment with what else a build needs,
# and a Debian for Arm in which qemu runs what they build:
#
#     eval "$(packaging/arm64.sh FOLDER [RELEASE])"
#     pip wheel --no-build-isolation --no-deps . -C build-dir=build/arm64 -C cmake.define.GGML_VULKAN=OFF
#     chroot "$ARM64_ROOT" python3 ...
#
# RELEASE is that of this machine, whose C library the cross compilers link. Needs root, debootstrap,
# g++-aarch64-linux-gnu, and qemu-user-static with its entry in /proc/sys/fs/binfmt_misc.
set -eu
folder=${1:?usage: $0 FOLDER [RELEASE]}
release=${2:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
root="$folder/$release"

if [ ! -e "$root/complete" ]; then
    rm -rf "$root" "$folder/include"
    debootstrap --arch=arm64 --variant=minbase --include=libgomp1,libstdc++6,python3-dev,python3-venv \
        "$release" "$root" >&2
    # Debian's <Python.h> looks for its configuration in a folder that the compilers do not know.
    cp -rL "$root"/usr/include/python3.* "$folder/include"
    cp "$root"/usr/include/aarch64-linux-gnu/python3.*/pyconfig.h "$folder/include/"
    touch "$root/complete"
fi
if [ ! -e "$folder/tools/complete" ]; then
    # An isolated build would get these for Arm, where cffi and CMake do not run.
    rm -rf "$folder/tools"
    python3 -m venv "$folder/tools"
    "$folder/tools/bin/pip" install --quiet \
        "scikit-build-core>=1.0" "cffi>=2.1" "pip>=23.1" "cmake>=3.26" ninja >&2
    touch "$folder/tools/complete"
fi

echo "export PATH='$folder/tools/bin':\"\$PATH\""
echo "export CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ _PYTHON_HOST_PLATFORM=linux-aarch64"
echo "export CMAKE_ARGS='-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64" \
    "-DPython_INCLUDE_DIR=$folder/include'"
echo "export ARM64_ROOT='$root'"
