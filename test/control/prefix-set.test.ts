/** Whether a prefix overlaps any of a set, against asking each. */
import fc from 'fast-check';
import t from 'tap';
import { type Cidr, cidrOf, overlaps } from '../../src/control/cidr.js';
import { PrefixSet } from '../../src/control/prefix-set.js';

/** Few bits, so that many of them meet. */
const prefix: fc.Arbitrary<Cidr> = fc
  .record({ six: fc.boolean(), bits: fc.integer({ min: 0, max: 255 }), length: fc.integer({ min: 0, max: 12 }) })
  .map(({ six, bits, length }) =>
    cidrOf(Uint8Array.from(six ? [0xfd, bits, ...Array(14).fill(0)] : [10, bits, 0, 0]), length),
  );

t.test('like asking each', async (t) => {
  fc.assert(
    fc.property(fc.array(prefix, { maxLength: 30 }), (prefixes) => {
      const set = new PrefixSet();
      const added: Cidr[] = [];
      for (const one of prefixes) {
        if (set.overlaps(one) !== added.some((other) => overlaps(one, other))) throw new Error(one.text);
        if (added.length % 2 === 0 || !set.overlaps(one)) {
          set.add(one);
          added.push(one);
        }
      }
    }),
    { numRuns: 2000 },
  );
  t.pass();
});
