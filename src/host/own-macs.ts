/** The MACs of devices of this host, and of the bridges that they are in, as one `ip` call tells them. */
import * as v from 'valibot';
import { ipRead } from './ip.js';

export interface OwnMacs {
  /** Six bytes. */
  readonly mac: Uint8Array | undefined;
  /** The bridge, if the device is in one. */
  readonly bridge: string | undefined;
  readonly bridgeMac: Uint8Array | undefined;
}

const schema = v.array(
  v.object({ ifname: v.string(), address: v.optional(v.string()), master: v.optional(v.string()) }),
);

/** In the order of `devices`; undefined: there is no such device now. */
export async function readOwnMacs(devices: readonly string[]): Promise<(OwnMacs | undefined)[]> {
  const links = new Map((await ipRead(schema, ['link', 'show']))?.map((link) => [link.ifname, link]));
  return devices.map((device) => {
    const link = links.get(device);
    if (!link) return undefined;
    const bridge = link.master === undefined ? undefined : links.get(link.master);
    return { mac: parsed(link.address), bridge: bridge?.ifname, bridgeMac: parsed(bridge?.address) };
  });
}

/** Of `02:00:00:00:00:05`; undefined for what is no Ethernet address. */
function parsed(text = ''): Uint8Array | undefined {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) return undefined;
  return Uint8Array.from(text.split(':'), (octet) => Number.parseInt(octet, 16));
}
