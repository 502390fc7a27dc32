#!/bin/sh
# A CUDA 13 toolkit with what llama.cpp's CUDA backend needs, from NVIDIA's packages on the Python
# package index, for a machine without one:
#
#     eval "$(packaging/cuda_toolkit.sh FOLDER [VERSION])"
#
# Needs pip and a C compiler. NVIDIA's packages of CUDA 12 hold no nvcc.
set -eu
folder=${1:?usage: $0 FOLDER [VERSION]}
version=${2:-13.0}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
toolkit="$folder/nvidia/cu${version%%.*}"

if [ ! -e "$folder/complete" ]; then
    for package in cuda-nvcc cuda-crt nvvm cuda-runtime cuda-cccl cublas; do
        echo "nvidia-$package==$version.*"
    done | xargs python3 -m pip install --quiet --no-deps --upgrade --target "$folder" >&2
    # What the packages leave out: the folder's other name, and the names that linkers look for.
    ln -sfn lib "$toolkit/lib64"
    for library in cudart cublas cublasLt; do
        ln -sf "lib$library.so.${version%%.*}" "$toolkit/lib/lib$library.so"
    done
    # The driver's library is installed with the driver. To link against it, its name is enough.
    mkdir -p "$toolkit/lib/stubs"
    for function in DeviceGet DeviceGetAttribute GetErrorString MemAddressFree MemAddressReserve \
        MemCreate MemGetAllocationGranularity MemMap MemRelease MemSetAccess MemUnmap; do
        echo "int cu$function(void) { return 999; }"
    done | "${CC:-cc}" -shared -fPIC -Wl,-soname,libcuda.so.1 -x c - -o "$toolkit/lib/stubs/libcuda.so"
    touch "$folder/complete"
fi

echo "export CUDACXX='$toolkit/bin/nvcc' CUDAToolkit_ROOT='$toolkit'"
