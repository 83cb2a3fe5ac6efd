/** docker-compose.yml without running it: docker-compose takes it, what it names is there, and nobody has more rights than it says. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { composeFileUnreadable, ROOT, readComposeFile } from '../hosts/lib/compose.js';

/** What each service has beyond nothing; one that is not here has nothing. */
const CAPABILITIES: Readonly<Record<string, readonly string[]>> = {
  'node-a': ['NET_ADMIN'],
  'node-b': ['NET_ADMIN'],
  'client-a': ['NET_ADMIN', 'SETUID', 'SETGID'],
  'client-b': ['NET_ADMIN', 'SETUID', 'SETGID'],
  'agent-a': ['NET_ADMIN', 'NET_RAW'],
  'agent-b': ['NET_ADMIN', 'NET_RAW'],
  'agent-client-a': ['NET_ADMIN', 'NET_RAW'],
  'agent-client-b': ['NET_ADMIN', 'NET_RAW'],
  bench: ['DAC_OVERRIDE'],
};

const unreadable = composeFileUnreadable();
if (unreadable !== undefined) t.plan(0, `SKIPPED: ${unreadable}`);
else await run();

async function run(): Promise<void> {
  const text = readFileSync(join(ROOT, 'docker-compose.yml'), 'utf8');
  const dockerfile = readFileSync(join(ROOT, 'deploy/Dockerfile'), 'utf8');
  const { services, networks } = await readComposeFile();

  await t.test('services', async (t) => {
    const inProfile = (profile: string | undefined): string[] =>
      Object.keys(services).filter((name) => services[name].profiles?.[0] === profile);
    t.same(inProfile(undefined).sort(), ['client-a', 'client-b', 'etcd', 'node-a', 'node-b'], 'by default');
    t.same(inProfile('observe').sort(), ['grafana', 'prometheus'], 'to observe');
    t.ok(inProfile('bench').includes('bench'), 'to race');
    for (const [name, service] of Object.entries(services)) {
      const isBench = service.profiles?.[0] === 'bench';
      t.ok(isBench || service.healthcheck, `${name} has a health check`);
    }
  });

  await t.test('rights', async (t) => {
    for (const [name, service] of Object.entries(services)) {
      t.notOk(service.privileged, `${name} is not privileged`);
      t.same(service.cap_drop, ['ALL'], `${name} begins with no capability`);
      t.same(service.cap_add ?? [], CAPABILITIES[name] ?? [], `${name} has those that the table says`);
      t.same(service.security_opt, ['no-new-privileges:true'], `${name} gets no other`);
      t.not(service.network_mode, 'host', `${name} is not in the host's network`);
      t.equal(service.pid, undefined, `${name} sees its own processes alone`);
      const devices = name.startsWith('node') ? ['/dev/net/tun:/dev/net/tun:rwm'] : [];
      t.same((service.devices ?? []).map(full), devices, `${name}: ${devices.length} devices`);
      for (const port of service.ports ?? []) {
        t.match(
          typeof port === 'string' ? port : port.host_ip,
          /^127\.0\.0\.1/,
          `${name}: ports are this host's alone`,
        );
      }
    }
    const given = text.split('\n').filter((line) => /^ +- (NET_|SET|DAC_)[A-Z]/.test(line));
    for (const line of given) t.match(line, ' # ', `a capability has its reason: ${line.trim()}`);
  });

  await t.test('what it names', async (t) => {
    for (const [name, { image, build, volumes = [] }] of Object.entries(services)) {
      t.match(image, build ? /:local$/ : /:v?\d+\.\d+\.\d+$/, `${name}: ${image} is of one version, or of this tree`);
      if (build) t.match(dockerfile, ` AS ${build.target}\n`, `the Dockerfile has ${build.target}`);
      for (const volume of volumes) {
        const [source, target] = typeof volume === 'string' ? volume.split(':') : [volume.source, ''];
        if (!source.startsWith('/') || target === '/results') continue; // the race makes it
        t.ok(existsSync(source), `${name}: ${source.slice(ROOT.length)} is there`);
      }
    }
    for (const [, path] of dockerfile.matchAll(/^COPY (?!--from)(?:.* )?(\S+) \S+$/gm)) {
      t.ok(existsSync(join(ROOT, path)), `the Dockerfile copies ${path}, which is there`);
    }
    const first = Object.keys(networks).sort()[0];
    t.equal(first, 'fabric', 'by name the underlay comes first, so that it is eth0');
  });

  await t.test('WEFT_BACKEND', async (t) => {
    const { services } = await readComposeFile({ WEFT_BACKEND: 'vxlan' });
    t.match(JSON.stringify(services.etcd), 'vxlan', 'is what etcd says');
    t.match(JSON.stringify(services['node-b']), 'vxlan', 'and makes the nodes anew');
  });
}

function full(device: string): string {
  return device.split(':').length === 1 ? `${device}:${device}:rwm` : device;
}
