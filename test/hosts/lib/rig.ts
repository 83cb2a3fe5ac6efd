/** What the tests of daemons' lives share: two hosts of one test's own, and a few looks at them. */
import { renameSync, writeFileSync } from 'node:fs';
import { type Host, Lab, twoHosts } from '../../../race/hosts.js';
import { Agent } from './agents.js';
import { type Assertions, Weft, writePeers } from './weft.js';

export interface Rig {
  readonly lab: Lab;
  readonly a: Host;
  readonly b: Host;
  readonly left: Agent;
  readonly right: Agent;
  readonly peers: string;
}

/** Two hosts of their own for each test: what one breaks is not the next one's trouble. */
export async function makeRig(t: Assertions & { teardown(work: () => Promise<void>): void }): Promise<Rig> {
  const lab = new Lab('ht-life');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
  return { lab, a, b, left, right, peers: writePeers(lab, [a, b]) };
}

export const startBoth = ({ a, b, peers }: Rig, ...args: string[]): Promise<[Weft, Weft]> =>
  Promise.all([Weft.start(a, { peers, args }), Weft.start(b, { peers, args })]);

/** Replaces a file in one step, as careful tools do. */
export function replace(path: string, text: string): void {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

export const linkExists = (host: Host, name: string): boolean => {
  try {
    host.ns.runSync('ip', 'link', 'show', name);
    return true;
  } catch {
    return false;
  }
};
