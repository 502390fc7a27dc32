#!/bin/sh
# Compilers of this machine that build for the C and C++ libraries of an older Debian, so that a
# wheel runs on every Linux that is as old or newer:
#
#     eval "$(packaging/sysroot.sh FOLDER [RELEASE])" && pip wheel .
#
# The release's own compiler is not used. That of Debian 11 cannot compile all of llama.cpp's CPU
# variants: AMX and AVX-VNNI need GCC 11. Needs root, debootstrap and GCC 11 or newer.
set -eu
folder=${1:?usage: $0 FOLDER [RELEASE]}
release=${2:-bullseye}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
root="$folder/$release"
triplet=$(gcc -print-multiarch)

if [ ! -e "$root/complete" ]; then
    rm -rf "$root"
    debootstrap --variant=minbase --include=libc6-dev,libstdc++-10-dev "$release" "$root" >&2
    # The linker would follow these out of the folder, to the libraries of this machine.
    find "$root/usr/lib/$triplet" "$root/usr/lib64" -type l -lname '/*' | while read -r link; do
        ln -sfr "$root$(readlink "$link")" "$link"
    done
    # Of the folder of the old compiler, only its C++ library may be linked.
    mkdir "$root/link"
    ln -s "$root/usr/lib/$triplet/libstdc++.so.6" "$root/link/libstdc++.so"
    ln -s "$root/usr/lib/$triplet/libgomp.so.1" "$root/link/libgomp.so"
    # And what auditwheel adds to wheels, apart from what its own Python would load.
    mkdir "$root/bundled"
    ln -s "$root/usr/lib/$triplet/libgomp.so.1" "$root/bundled/libgomp.so.1"
    # Debian's python3-dev has its configuration here, where <Python.h> looks for it.
    for python in "/usr/include/$triplet"/python3*; do
        [ ! -e "$python" ] || ln -s "$python" "$root/usr/include/$triplet/"
    done
    # For GCC 13 and nvcc, two names of the old C++ library are words of the language.
    for name in __is_nothrow_convertible __remove_cv; do
        grep -rlw "$name" "$root/usr/include/c++/10" | xargs sed -i "s/\\b$name\\b/${name}_10/g"
    done
    mkdir "$root/compilers"
    cxx="-nostdinc++ -isystem $root/usr/include/c++/10 -isystem $root/usr/include/$triplet/c++/10"
    for compiler in gcc g++; do
        [ "$compiler" = gcc ] && options="" || options="$cxx"
        cat > "$root/compilers/$compiler" <<END
#!/bin/sh
exec $(command -v $compiler) --sysroot=$root $options -B$root/usr/lib/$triplet \\
    -L$root/link -L$root/usr/lib/$triplet "\$@"
END
        chmod +x "$root/compilers/$compiler"
    done
    touch "$root/complete"
fi

echo "export CC='$root/compilers/gcc' CXX='$root/compilers/g++' CUDAHOSTCXX='$root/compilers/g++'"
echo "export BUNDLED_LIBRARIES='$root/bundled'"
