/**
 * An offload that the kernel takes back at run time: packets go without it, it is said once, and counted.
 *
 * Modern kernels refuse UDP_SEGMENT only in odd places, so the test brings one about: it takes a copy of the daemon's socket
 * (pidfd_getfd) and turns UDP checksums off on it, with which UDP_SEGMENT is EINVAL (kernel-interfaces: "UDP in batches").
 */
import t from 'tap';
import { answersPing, Lab, run, sleep, twoHosts } from '../../race/hosts.js';
import { Agent, MiB, PYTHON, sendSegments } from './lib/agents.js';
import { assertConserved, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible(PYTHON);
t.setTimeout(0);

/** Sets SO_NO_CHECK to argv[2] on every UDP socket of process argv[1] that is bound to port 8285; prints on how many. */
const TAKE_CHECKSUMS = `
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
pid, value = int(sys.argv[1]), int(sys.argv[2])
pidfd = libc.syscall(434, pid, 0)
if pidfd < 0: sys.exit('pidfd_open: ' + os.strerror(ctypes.get_errno()))
changed = 0
for name in os.listdir('/proc/%d/fd' % pid):
    try: link = os.readlink('/proc/%d/fd/%s' % (pid, name))
    except OSError: continue
    if not link.startswith('socket:'): continue
    fd = libc.syscall(438, pidfd, int(name), 0)
    if fd < 0: sys.exit('pidfd_getfd: ' + os.strerror(ctypes.get_errno()))
    s = socket.socket(fileno=fd)
    if s.type == socket.SOCK_DGRAM and s.family in (socket.AF_INET, socket.AF_INET6) and s.getsockname()[1] == 8285:
        s.setsockopt(socket.SOL_SOCKET, 11, value)
        changed += 1
print(changed)
`;

/** Why UDP_SEGMENT cannot be made to fail here, or undefined when it will fail from now on. */
async function refuseSegments(weft: Weft): Promise<string | undefined> {
  // The daemon runs under `ip netns exec`, which became node: same pid.
  const { code, stdout, stderr } = await run(PYTHON, ['-c', TAKE_CHECKSUMS, String(weft.daemon.child.pid), '1']);
  if (code !== 0) return stderr.trim().split('\n').at(-1);
  return stdout.trim() === '1' ? undefined : `found ${stdout.trim()} sockets`;
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('UDP_SEGMENT refused under way', async (t) => {
    const lab = new Lab('ht-fallback');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    const peers = writePeers(lab, [a, b]);
    const env = { WEFT_CHECK_ADDRESSES: '1' };
    const wefts = await Promise.all([a, b].map((host) => Weft.start(host, { peers, env })));
    const [weft] = wefts;
    const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    t.equal(await weft.sample('weft_offload_in_use{offload="segment"}'), 1, 'segmentation is on');

    const transfer = left.tcp(b.client4, { bytes: 256 * MiB });
    await sleep(200);
    const cannot = await refuseSegments(weft);
    const { flows } = await transfer;
    t.ok(
      flows.every((flow) => flow.sent === flow.received),
      'the TCP flow goes on, byte for byte',
    );
    if (cannot) {
      t.comment(`SKIPPED: cannot make this kernel refuse UDP_SEGMENT: ${cannot}`);
      return;
    }
    await weft.event('offload_refused');
    await right.expect();
    const sent = await sendSegments(a.client, b.client4, { size: 1200, each: 40, calls: 30, last: 77 });
    const { received, wrong, missing, reordered } = await right.countedUpTo(sent);
    t.same({ received, wrong, missing, reordered }, { received: sent, wrong: 0, missing: 0, reordered: 0 }, 'UDP, too');
    for (const address of [b.client4, b.client6]) {
      const more = await left.tcp(address, { bytes: 16 * MiB, flows: 4, duplex: true });
      t.ok(
        more.flows.every((flow) => flow.sent === flow.received),
        `TCP to ${address}`,
      );
    }
    const said = weft.events('offload_refused');
    t.equal(said.length, 1, 'it is said once');
    t.match(said[0], { level: 'warn', offloads: ['segment'] }, 'and by its name');
    t.equal(await weft.sample('weft_offload_in_use{offload="segment"}'), 0, 'metrics say that it is off');
    const [now] = await assertConserved(t, wefts, 'afterwards');
    const replayed = now.get('outbound.messages_replayed');
    t.ok(replayed >= 1 && replayed <= 64, `${replayed} messages were sent again singly`);
  });
}
