/** Link-layer headers for packets that never had one. */
import { ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6 } from '../../packet/ethernet.js';
import { SIZE } from './headers.js';

export const MOST_LINK_HEADER = SIZE.sll;

/** LINKTYPE_LINUX_SLL: sent to us, and sent by us. */
const SLL_HOST = 0;
const SLL_OUTGOING = 4;
/** What Linux says of a device that has no link layer (linux/if_arp.h). */
const ARPHRD_NONE = 0xfffe;

/** For layer 2 an Ethernet header without addresses, for layer 3 a cooked one. `version`: of the IP packet behind it. */
export function linkHeader(mode: 'l2' | 'l3', version: number, inbound: boolean): Uint8Array {
  const type = version === 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4;
  const header = new Uint8Array(mode === 'l2' ? ETHERNET_HEADER : SIZE.sll);
  const view = new DataView(header.buffer);
  view.setUint16(header.length - 2, type);
  if (mode === 'l3') {
    view.setUint16(0, inbound ? SLL_HOST : SLL_OUTGOING);
    view.setUint16(2, ARPHRD_NONE);
  }
  return header;
}
