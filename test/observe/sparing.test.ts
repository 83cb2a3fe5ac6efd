/** Who asks often gets the same again, but never for ever. */
import t from 'tap';
import { sparing } from '../../src/observe/sparing.js';

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

t.test('those who ask meanwhile, and soon after, get the same', async (t) => {
  let reads = 0;
  const read = sparing(async () => {
    await sleep(20);
    return ++reads;
  }, 1000);
  t.same(await Promise.all([read(), read(), read()]), [1, 1, 1]);
  t.equal(await read(), 1);
});

t.test('not for longer than is said', async (t) => {
  let reads = 0;
  const read = sparing(
    async () => {
      await sleep(20);
      return ++reads;
    },
    1000,
    10,
  );
  t.equal(await read(), 1);
  await sleep(50);
  t.equal(await read(), 2);
});

t.test('a failure is told, and then it is read again', async (t) => {
  for (const early of [true, false]) {
    let reads = 0;
    const fail = (): Promise<number> => {
      if (early) throw new Error('early');
      return Promise.reject(new Error('late'));
    };
    const read = sparing(() => (++reads === 2 ? fail() : Promise.resolve(reads)), 0);
    t.equal(await read(), 1);
    await sleep(5);
    await t.rejects(read(), early ? /early/ : /late/);
    await sleep(5);
    t.equal(await read(), 3);
  }
});
