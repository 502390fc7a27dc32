#!/bin/sh
# Vulkan's build tools for a Debian release whose own headers are too old for llama.cpp (12), from
# the packages of the next one, unpacked into a folder and not installed:
#
#     eval "$(scripts/debian_vulkan_toolchain.sh FOLDER)" && pip install .
#
# The package sources are those of this machine, for the next release. Writes nothing outside FOLDER.
set -eu
newer=${DEBIAN_RELEASE:-trixie}
folder=${1:?usage: $0 FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if [ ! -x "$folder/bin/glslc" ]; then
    . /etc/os-release
    work="$folder/work"
    mkdir -p "$work/lists/partial" "$work/debs" "$work/sources.d"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
        if [ -e "$file" ]; then
            sed "s/$VERSION_CODENAME/$newer/g" "$file" > "$work/sources.d/$(basename "$file")"
        fi
    done
    apt() {
        apt-get -q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources.d" \
            -o "Dir::State::Lists=$work/lists" "$@" >&2
    }
    apt update
    (cd "$work/debs" && apt download libvulkan-dev libvulkan1 spirv-headers glslc libshaderc1 \
        libc6 libstdc++6 libgcc-s1)
    for package in "$work"/debs/*.deb; do
        dpkg -x "$package" "$work/root"
    done
    library="$work/root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null ||
        gcc -print-multiarch)"
    mkdir -p "$folder/run" "$folder/lib" "$folder/bin" "$folder/share/cmake"
    cp -r "$work/root/usr/include" "$folder/"
    cp -r "$work/root/usr/share/cmake/SPIRV-Headers" "$folder/share/cmake/"
    cp -L "$library/libvulkan.so.1" "$folder/lib/libvulkan.so"
    # glslc is linked with a newer C library than this release has: it brings its own.
    for name in libshaderc.so.1 libstdc++.so.6 libgcc_s.so.1 libc.so.6 libm.so.6; do
        cp -L "$library/$name" "$folder/run/"
    done
    cp -L "$library"/ld-linux-*.so.* "$folder/run/"
    cp "$work/root/usr/bin/glslc" "$folder/run/"
    cat > "$folder/bin/glslc" <<'END'
#!/bin/sh
run=$(dirname "$(dirname "$(readlink -f "$0")")")/run
exec "$run"/ld-linux-*.so.* --library-path "$run" "$run/glslc" "$@"
END
    chmod +x "$folder/bin/glslc"
    rm -rf "$work"
    "$folder/bin/glslc" --version >&2
fi
echo "export VULKAN_SDK='$folder' CMAKE_PREFIX_PATH='$folder'"
