/** /v1/leases: ours with what is left of it, and everyone's as the registry told last. */
import type { Inspected, Running } from '../inspected.js';
import { textsOf } from '../inspected.js';
import { type LeaseEntry, type LeasesAnswer, MOST_ENTRIES, type OwnLease } from '../protocol.js';

export function leasesAnswer(inspected: Inspected): LeasesAnswer {
  const running = inspected.needRunning();
  const { underlay, member, applier } = running;
  const own = ownLease(running);
  const ours = new Set(textsOf([...underlay.addresses, ...underlay.publicAddresses]));
  const inForce = new Set(Array.from(applier.have.peers.values(), ({ address }) => address));
  const records = [...running.records().values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const leases = records.slice(0, MOST_ENTRIES).map((record): LeaseEntry => {
    const { id, name, address, port, subnets, vnis, macs } = record;
    return {
      id,
      name,
      address,
      port,
      subnets,
      vnis,
      macs: macs.map(({ mac }) => mac),
      ours: ours.has(address),
      inForce: inForce.has(address) && !ours.has(address),
    };
  });
  return { own: own && { ...own, subnets: textsOf(member.subnets) }, leases, more: records.length - leases.length };
}

/** null: there are no leases. */
export function ownLease({ member }: Running): OwnLease | null {
  if (member.lease === undefined) return null;
  return { how: member.lease, secondsLeft: member.secondsLeft() ?? null, forwards: member.forwards() };
}
