#!/bin/sh
# Of the image `etcd`: one member for everybody on the network, with flannel's configuration ($FLANNEL_CONFIG) as it starts.
set -eu
: "${FLANNEL_CONFIG:?what /coreos.com/network/config shall say}"

# Beside etcd, until it answers. It is written at each start: nodes read it at theirs.
(
  until etcdctl --command-timeout=2s put /coreos.com/network/config "$FLANNEL_CONFIG" >/dev/null 2>&1; do sleep 0.2; done
) &

exec etcd --name etcd --data-dir /var/lib/etcd/data \
  --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls "${ADVERTISE:-http://127.0.0.1:2379}" \
  --auto-compaction-retention 1h --log-level warn "$@"
