#!/bin/sh
# Of the image `client`: a route to the overlay ($NETWORK) by the node ($VIA), for which it is root; then it waits as nobody,
# with no capability, for `docker compose exec`.
set -eu
ip route replace "${NETWORK:?the overlay, for example 10.5.0.0/16}" via "${VIA:?the address of the node}"
exec setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs \
  sh -c 'trap "exit 0" TERM INT; sleep infinity & wait'
