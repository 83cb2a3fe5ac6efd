/** The network's end: the underlay's sockets of all workers, as the configuration wants them. */
import { closeSync } from 'node:fs';
import type { Underlay } from './control/underlay.js';
import { probePort } from './host/probe.js';
import { openUdp, type UdpSocket } from './io/udp.js';
import type { Overlay } from './overlay.js';

export interface Sockets {
  /** By worker: the IPv4 and the IPv6 one on our port, which all workers share; -1 where there is none. */
  readonly receivers: readonly (readonly [number, number])[];
  /** By worker and family: those that only send; none in layer 3, where the receiving one sends too. */
  readonly senders: readonly (readonly [readonly number[], readonly number[]])[];
  /** Those of the wanted offloads that all of them have. */
  readonly offloads: number;
  /** Most datagrams one message may hold. */
  readonly maxSegments: number;
  close(): void;
}

/** Throws a SetupError: the port is in use, an address is not of this host. */
export function openSockets(underlay: Underlay, port: number, overlay: Overlay): Sockets {
  const { workers, offloads, outerChecksum: checksum, outerDf: df } = overlay;
  const sourcePorts = overlay.mode === 'l2' ? overlay.sourcePorts : 0;
  const open: UdpSocket[] = [];
  const close = (): void => {
    for (const { fd } of open) closeSync(fd);
  };
  const receivers: [number, number][] = [];
  const senders: [number[], number[]][] = [];
  if (workers > 0) for (const { bytes, text } of underlay.addresses) probePort(bytes, text, port);
  try {
    for (let worker = 0; worker < workers; worker++) {
      receivers.push([-1, -1]);
      senders.push([[], []]);
      for (const { family, bytes: address, text } of underlay.addresses) {
        const i = family === 4 ? 0 : 1;
        const opened = (wanted: number | undefined): number => {
          const socket = openUdp({ address, text, port: wanted, offloads, checksum, df });
          open.push(socket);
          return socket.fd;
        };
        receivers[worker][i] = opened(port);
        for (let sender = 0; sender < sourcePorts; sender++) senders[worker][i].push(opened(undefined));
      }
    }
  } catch (error) {
    close();
    throw error;
  }
  return {
    receivers,
    senders,
    offloads: open.reduce((bits, socket) => bits & socket.offloads, offloads),
    maxSegments: Math.min(...open.map((socket) => socket.maxSegments)),
    close,
  };
}
