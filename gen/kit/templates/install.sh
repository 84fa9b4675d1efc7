#!/bin/sh
# Loads the machine on the board: sudo ./install.sh [BITSTREAM]   (default: @name@.bit.bin beside this script)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bits=${1:-$here/@name@.bit.bin}
root=${ROOT:-}
folder=$root/lib/firmware/xilinx/@name@
if [ ! -f "$bits" ]; then echo "$bits is missing: copy vivado/out/@name@.bit.bin here" >&2; exit 1; fi
command -v dtc >/dev/null || { echo "dtc is missing: apt install device-tree-compiler" >&2; exit 1; }
mkdir -p "$folder"
cp "$bits" "$folder/@name@.bit.bin"
cp "$here/shell.json" "$folder/shell.json"
dtc -q -@ -I dts -O dtb -o "$folder/@name@.dtbo" "$here/@name@.dtso"
modprobe u-dma-buf 2>/dev/null || echo "the module u-dma-buf is not there: docs/boards/kv260.md, step 3" >&2
modprobe uio_pdrv_genirq of_id=generic-uio
if command -v xmutil >/dev/null; then
    rm -f "$root/lib/firmware/@name@.bit.bin" # of an installation by fpgautil: remove.sh asks for it
    xmutil unloadapp || true
    xmutil loadapp @name@
elif command -v fpgautil >/dev/null; then
    cp "$bits" "$root/lib/firmware/@name@.bit.bin"
    fpgautil -R || true
    fpgautil -b "$bits" -o "$folder/@name@.dtbo"
else
    echo "neither xmutil nor fpgautil is there: apt install xlnx-firmware-kv260 xmutil" >&2
    exit 1
fi
grep -qx @name@ "$root"/sys/class/uio/uio*/name 2>/dev/null || { echo "the loader has ended, but no UIO device is called @name@: see dmesg" >&2; exit 1; }
echo "loaded: tritloom doctor --board kv260 looks at it"
