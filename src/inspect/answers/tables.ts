/** /v1/macs and /v1/neighbours: what layer 2 was told and has learned; layer 3 learns nothing. */
import { textOf } from '../../control/cidr.js';
import { macText } from '../../control/mac.js';
import { readMacs, readNeighbours } from '../../dataplane/forwarding.js';
import { LOCAL } from '../../dataplane/macs.js';
import { inSlices, monotonic } from '../../observe/tables.js';
import type { Inspected, Running } from '../inspected.js';
import { peersOf } from '../inspected.js';
import {
  type MacEntry,
  type MacsAnswer,
  MOST_ENTRIES,
  type NeighbourEntry,
  type NeighboursAnswer,
} from '../protocol.js';

export async function macsAnswer(inspected: Inspected): Promise<MacsAnswer> {
  const running = inspected.needRunning();
  const { mode } = running.overlay;
  const macs: MacEntry[] = [];
  let more = 0;
  if (mode === 'l3') return { mode, macs, more };
  const nameOf = namesOf(running);
  await inSlices(readMacs(running.dataplane.memory, monotonic(), ageLimit(running)), (entry) => {
    const { network, mac, ref, origin, age } = entry;
    const peer = nameOf(ref);
    if (peer === undefined) return; // it has just left
    if (macs.length === MOST_ENTRIES) more++;
    else macs.push({ vni: vni(running, network), mac: macText(mac), peer, origin, ageSeconds: seconds(age) });
  });
  return { mode, macs, more };
}

export async function neighboursAnswer(inspected: Inspected): Promise<NeighboursAnswer> {
  const running = inspected.needRunning();
  const { mode } = running.overlay;
  const neighbours: NeighbourEntry[] = [];
  let more = 0;
  if (mode === 'l3') return { mode, neighbours, more };
  const nameOf = namesOf(running);
  await inSlices(readNeighbours(running.dataplane.memory, monotonic(), ageLimit(running)), (entry) => {
    const { network, vlans, address, mac, ref, router = null, origin, age } = entry;
    const peer = nameOf(ref);
    if (peer === undefined) return;
    if (neighbours.length === MOST_ENTRIES) more++;
    else
      neighbours.push({
        vni: vni(running, network),
        ...(vlans.length > 0 ? { vlans } : {}),
        address: textOf(address),
        mac: macText(mac),
        peer,
        router,
        origin,
        ageSeconds: seconds(age),
      });
  });
  return { mode, neighbours, more };
}

/** Milliseconds after which what was learned is not used any more. */
export const ageLimit = ({ overlay }: Running): number => overlay.macAge * 1000;

const vni = ({ overlay }: Running, network: number): number => overlay.segments[network].vni;
const seconds = (age: number | undefined): number | null => (age === undefined ? null : Math.max(0, age) / 1000);

/** By reference: a peer's name, null for ourselves, undefined for one that has gone. */
function namesOf(running: Running): (ref: number) => string | null | undefined {
  const names = new Map(Array.from(peersOf(running), ({ ref, name }) => [ref, name]));
  return (ref) => (ref === LOCAL ? null : names.get(ref));
}
