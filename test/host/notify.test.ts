/** sd_notify: what a service manager's socket hears, by path and by name, and that nothing else happens. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import t from 'tap';
import { notify } from '../../src/host/notify.js';

/** A datagram socket of Python's, since Node has none of this family; prints each datagram as a line of JSON. */
const LISTENER = `
import json, socket, sys
path = sys.argv[1]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(chr(0) + path[1:] if path.startswith('@') else path)
print(json.dumps('listening'), flush=True)
while True: print(json.dumps(s.recv(65536).decode()), flush=True)
`;

async function listen(
  t: Pick<typeof import('tap').default, 'teardown'>,
  path: string,
): Promise<() => Promise<unknown>> {
  const python = spawn('python3', ['-c', LISTENER, path], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(async () => {
    python.kill('SIGKILL');
    await once(python, 'exit');
  });
  const lines = createInterface(python.stdout)[Symbol.asyncIterator]();
  const next = async (): Promise<unknown> => JSON.parse((await lines.next()).value ?? 'null');
  await next();
  return next;
}

t.test('it is heard', async (t) => {
  for (const path of [join(t.testdir(), 'notify'), `@weft-test-notify-${process.pid}`]) {
    const heard = await listen(t, path);
    notify('READY=1', path);
    t.equal(await heard(), 'READY=1', path);
    notify('STATUS=waiting for etcd\nEXTEND_TIMEOUT_USEC=1', path);
    t.equal(await heard(), 'STATUS=waiting for etcd\nEXTEND_TIMEOUT_USEC=1');
    process.env.NOTIFY_SOCKET = path;
    notify('STOPPING=1');
    delete process.env.NOTIFY_SOCKET;
    t.equal(await heard(), 'STOPPING=1', '$NOTIFY_SOCKET');
  }
});

t.test('a manager that is busy hears it later', async (t) => {
  const path = join(t.testdir(), 'notify');
  const heard = await listen(t, path);
  const states = Array.from({ length: 500 }, (_, i) => `STATUS=${i}`);
  for (const state of states) notify(state, path); // more than its queue has room for
  const all: unknown[] = [];
  for (const _ of states) all.push(await heard());
  t.same(new Set(all), new Set(states));
});

t.test('nobody is there', async (t) => {
  delete process.env.NOTIFY_SOCKET;
  t.doesNotThrow(() => notify('READY=1'));
  for (const path of [
    '',
    '/nowhere/notify',
    `@nobody-${process.pid}`,
    'relative',
    'vsock:2:1',
    '@',
    `/${'x'.repeat(200)}`,
    process.execPath,
  ]) {
    t.doesNotThrow(() => notify('READY=1', path), path);
  }
});
