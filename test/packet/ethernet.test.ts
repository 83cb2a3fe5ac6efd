/** packet/ethernet.ts; every check runs in a view that ends with the frame. */
import t from 'tap';
import * as ethernet from '../../src/packet/ethernet.js';
import { concat, hex } from '../lib/packets.js';

/** A view in which a read behind the frame throws. */
const exact = (bytes: Uint8Array): DataView => new DataView(Uint8Array.from(bytes).buffer);

const MACS = new Uint8Array(12).fill(2);
const header = (...words: readonly number[]): Uint8Array =>
  concat(MACS, ...words.map((word) => [word >> 8, word & 255]));
const { ETHERTYPE_VLAN: VLAN, ETHERTYPE_SERVICE_VLAN: SERVICE, ETHERTYPE_ARP: ARP } = ethernet;

t.test('headerLength looks through two tags, and never beyond the frame', async (t) => {
  const cases: readonly (readonly [string, readonly number[], number])[] = [
    ['no tag', [ARP], 14],
    ['a length instead of a type', [46], 14],
    ['a tag', [VLAN, 0xe005, ARP], 18],
    ['a service tag', [SERVICE, 5, ARP], 18],
    ['both', [SERVICE, 5, VLAN, 6, ARP], 22],
    ['two alike', [VLAN, 5, VLAN, 6, ARP], 22],
    ['three: the third is payload', [SERVICE, 5, VLAN, 6, VLAN, 7, ARP], 22],
    ['a tag whose identifier is a tag type', [VLAN, VLAN, ARP], 18],
  ];
  for (const [name, words, length] of cases) {
    const frame = header(...words);
    t.equal(ethernet.headerLength(exact(frame), 0, frame.length), length, name);
    for (let cut = 0; cut < length; cut++) {
      t.equal(ethernet.headerLength(exact(frame.subarray(0, cut)), 0, cut), 0, `${name}, ${cut} bytes of it`);
    }
    const after = concat(new Uint8Array(5), frame, new Uint8Array(50));
    t.equal(ethernet.headerLength(exact(after), 5, after.length - 5), length, `${name}, elsewhere, with payload`);
  }
});

t.test('headerLength is bounded by the length it is told, not by what follows', async (t) => {
  const frame = header(VLAN, 5, VLAN, 6, ARP);
  t.equal(ethernet.headerLength(exact(frame), 0, 21), 0);
  t.equal(ethernet.headerLength(exact(frame), 0, 17), 0);
});

t.test('group addresses', async (t) => {
  for (const first of [0x01, 0x33, 0xff]) t.ok(ethernet.isGroupMac(exact(Uint8Array.of(first)), 0));
  for (const first of [0x00, 0x02, 0xfe]) t.notOk(ethernet.isGroupMac(exact(Uint8Array.of(first)), 0));
  const bytes = new Uint8Array(8);
  ethernet.writeAllNodesMac(new DataView(bytes.buffer), 1);
  t.equal(hex(bytes), '0033330000000100');
});
