/** How long a race says that it takes yet. */
import t from 'tap';
import { aboutLeft, clock, Estimate } from '../../race/progress.js';

t.test('from what steps have taken, else from the same task with others, else from a guess', async (t) => {
  const task = { name: 'bulk', guess: 5 };
  const [first, second] = ['weft-udp', 'direct'].map((name) => ({ task, subject: { name } }));
  const other = { task: { name: 'ping', guess: 3 }, subject: { name: 'direct' } };
  const estimate = new Estimate();
  t.equal(estimate.of([first, second, other]), 13_000, 'guesses');
  estimate.add(first, 8000);
  estimate.add(first, 10_000);
  t.equal(estimate.of([first, first]), 18_000, 'its own mean');
  t.equal(estimate.of([second, other]), 12_000, 'the mean of the same task, and a guess');
  estimate.add(second, 3000);
  t.equal(estimate.of([first, second]), 12_000);
  t.equal(estimate.of([{ task, subject: { name: 'fastd' } }]), 7000, 'the mean of all');
  t.equal(estimate.of([]), 0);
});

t.test('said no more exactly than it is', async (t) => {
  const said = [0, 1, 12_345, 85_000, 95_000, 1_500_000, 5_370_000, 5_460_000, 6_600_000, 7_200_000].map(aboutLeft);
  t.same(said, [
    'about 0 s left',
    'about 10 s left',
    'about 20 s left',
    'about 90 s left',
    'about 2 min left',
    'about 25 min left',
    'about 1 h 30 min left',
    'about 1 h 30 min left',
    'about 1 h 50 min left',
    'about 2 h left',
  ]);
  t.equal(clock(730_000), '12:10');
  t.equal(clock(5000), '0:05');
});
