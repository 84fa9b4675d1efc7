#!/bin/sh
# Takes the machine off the board again: sudo ./remove.sh
# An overlay is removed by what loaded it: neither xmutil nor fpgautil can remove the other's.
set -eu
root=${ROOT:-}
if [ -f "$root/lib/firmware/@name@.bit.bin" ]; then
    fpgautil -R
    rm "$root/lib/firmware/@name@.bit.bin"
else
    xmutil unloadapp
fi
rm -rf "$root/lib/firmware/xilinx/@name@"
