/** /v1/offloads: what was asked for, what the kernel gave, and what it took back. */
import { deviceFeatures } from '../../host/link-state.js';
import { OFFLOAD_NAMES, OFFLOADS, type OffloadName } from '../../io/offloads.js';
import type { Inspected } from '../inspected.js';
import type { OffloadsAnswer } from '../protocol.js';

const MEANINGS: Readonly<Record<OffloadName, string>> = {
  csum: 'the host may hand over packets with unfinished checksums',
  tso4: 'the host hands over and takes TCP super-packets, IPv4',
  tso6: 'the host hands over and takes TCP super-packets, IPv6',
  uso: 'the host hands over and takes UDP super-packets (Linux 6.2)',
  segment: 'one message to the socket holds many datagrams (UDP_SEGMENT, Linux 4.18)',
  gro: 'one message from the socket holds many datagrams (UDP_GRO, Linux 5.0)',
  merge: 'received packets of a flow are merged into super-packets for the host',
};

export function offloadsAnswer(inspected: Inspected): OffloadsAnswer {
  const { overlay, dataplane, devices, granted, maxSegments } = inspected.needForwarding();
  const { offloads: inUse } = dataplane;
  const refused = dataplane.shared.refusedOffloads();
  const onDevices = deviceBits(devices);
  return {
    offloads: OFFLOAD_NAMES.map((name) => {
      const bit = OFFLOADS[name];
      return {
        name,
        meaning: MEANINGS[name],
        wanted: (overlay.offloads & bit) !== 0,
        granted: (granted & bit) !== 0,
        refused: (refused & bit) !== 0,
        inUse: (inUse & bit) !== 0,
        device: onDevices === undefined || (bit & inUse & OF_DEVICES) === 0 ? null : (onDevices & bit) !== 0,
      };
    }),
    maxSegments: inUse & OFFLOADS.segment ? maxSegments : 1,
  };
}

const { csum, tso4, tso6 } = OFFLOADS;
/** Those that a device has a switch for that can be asked for simply. */
const OF_DEVICES = csum | tso4 | tso6;

/** Of OF_DEVICES, those that all devices have on; undefined where nobody says. */
function deviceBits(devices: readonly string[]): number | undefined {
  const features = devices.map(deviceFeatures).filter((one) => one !== undefined);
  if (features.length === 0) return undefined;
  const checksums = features.every((one) => one.checksums);
  const segmentation = features.every((one) => one.segmentation);
  return (checksums ? csum : 0) | (segmentation ? tso4 | tso6 : 0);
}
