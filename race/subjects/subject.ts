/** What a subject of the race is, and what all of them share. */
import { existsSync } from 'node:fs';
import { answersPing, type Host, type Lab, sleep } from '../hosts.js';
import { forgetPaths } from '../measures.js';

export interface Subject {
  readonly name: string;
  /** Set up on all hosts and ready to forward, but unused. */
  start(): Promise<void>;
  /** The route (what follows `ip route replace`) that leads from one host to another, or undefined if it has its own. */
  route(from: Host, to: Host): string | undefined;
  /** The device through which packets leave host `from` for `to`. */
  device(from: Host, to: Host): string;
  /** Before each step of its own, once packets go through it; and after it, however it ended. */
  begin?(): Promise<void>;
  end?(): Promise<void>;
}

/** A program that has to be installed. */
export interface Program {
  readonly command: string;
  /** The Debian package that has it. */
  readonly package: string;
  /** The arguments that make it say its version on its first line. */
  readonly version: readonly string[];
}

/** How a subject is made. One file of this folder has one, or a few that are much alike. */
export interface SubjectKind {
  readonly name: string;
  /** Beyond Weft, Node and iproute2. The first one's version is the subject's. */
  readonly needs: readonly Program[];
  /** `daemonArgs` are for weftds only. */
  make(lab: Lab, hosts: readonly Host[], daemonArgs: readonly string[]): Subject;
}

/** Waits for a device that a daemon makes, for five seconds, and sets it up. `more` stands in the same `ip link set`: an MTU. */
export async function bringUp(host: Host, device: string, more = ''): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      host.ns.ip(`link set ${device} ${more} up`);
      return;
    } catch (error) {
      if (tries === 100) throw error;
      await sleep(50);
    }
  }
}

/** Resolves once there is such a file, a daemon's socket: within five seconds, or it rejects. `maker` is for the message. */
export async function appears(file: string, maker: string): Promise<void> {
  for (let tries = 0; !existsSync(file); tries++) {
    if (tries === 250) throw new Error(`${maker} made no ${file} within 5 s`);
    await sleep(20);
  }
}

/** Sends everything between host a's clients and the others' through `subject`, and checks that it does go there. */
export async function use(subject: Subject, hosts: readonly Host[]): Promise<void> {
  const [a, ...far] = hosts;
  const change = (from: Host, to: Host): void => {
    const route = subject.route(from, to);
    if (route) from.ns.ip(`route replace ${to.subnet4} ${route}`);
    else if (from.ns.runSync('ip', 'route', 'show', 'exact', to.subnet4)) from.ns.ip(`route del ${to.subnet4}`);
  };
  for (const host of far) {
    change(a, host);
    change(host, a);
  }
  forgetPaths(hosts);
  for (const host of far) {
    for (const [from, to] of [
      [a, host],
      [host, a],
    ]) {
      const device = subject.device(from, to);
      const taken = from.ns.runSync('ip', 'route', 'get', to.client4);
      if (!taken.includes(` dev ${device} `)) {
        throw new Error(
          `${subject.name}: ${to.client4} is not reached through ${device} but by: ${taken.split('\n')[0]}`,
        );
      }
    }
    if (!(await answersPing(a.client, host.client4, 10_000))) {
      throw new Error(`${subject.name}: ${host.client4} does not answer a ping from ${a.client4}`);
    }
  }
}
