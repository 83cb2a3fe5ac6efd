#!/bin/sh
# Of the image `weft`: weftd with the container's arguments, as process 1. FLANNELD_… and WEFT_… variables work as everywhere.
#
# SUBNET=10.5.1.0/24 in NETWORK=10.5.0.0/16 asks for a subnet where etcd would give any: weftd, like flanneld, takes again the one
# of its subnet.env, so there is one before the first start. What etcd has for our address goes before it.
set -eu
file=/run/flannel/subnet.env
case ${SUBNET-} in
  '' | *.0/*) ;;
  *) echo "SUBNET=$SUBNET: expected a network address that ends in .0, for example 10.5.1.0/24" >&2; exit 2 ;;
esac
if [ -n "${SUBNET-}" ] && [ ! -e "$file" ]; then
  mkdir -p "${file%/*}"
  printf 'FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n' \
    "${NETWORK:?of which SUBNET is a part}" "${SUBNET%.0/*}.1/${SUBNET#*/}" >"$file"
fi
exec weftd "$@"
