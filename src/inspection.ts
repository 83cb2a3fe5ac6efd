/** The control socket of this daemon, as its configuration wants it (src/inspect serves it). */
import type { Config } from './config.js';
import type { EventLog } from './control/event-log.js';
import { networkNamespace } from './host/network-namespace.js';
import { Inspected } from './inspect/inspected.js';
import { type ControlSocket, serveControl } from './inspect/server.js';
import type { Log } from './observe/log.js';

/** What it will look at; empty, so far. */
export const inspectedFor = ({ registry, logFormat }: Config, version: string, log: Log): Inspected =>
  new Inspected({ version, registry, log, logFormat, networkNamespace: networkNamespace() });

/** Resolves to nothing where it is not wanted, or cannot be had. Rejects with a SetupError where its path was said. */
export async function startControl(
  { controlSocket: path }: Config,
  inspected: Inspected,
): Promise<ControlSocket | undefined> {
  return path === 'off' ? undefined : serveControl({ path, inspected });
}

/** `log`, from which `inspected` learns why the registry keeps us waiting. */
export function noting(log: EventLog, inspected: Inspected): EventLog {
  return {
    debug: (event, fields) => log.debug(event, fields),
    info: (event, fields) => log.info(event, fields),
    warn: (event, fields) => {
      if (event === WAITING && inspected.waitingFor !== undefined)
        inspected.waitingFor = `the registry: ${fields?.reason}`;
      log.warn(event, fields);
    },
    error: (event, fields) => log.error(event, fields),
  };
}

/** What control says when it waits for the registry, with the reason (control/etcd-membership.ts). */
const WAITING = 'etcd_waiting';
