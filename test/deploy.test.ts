/** What deploy/ has: the units are understood by systemd, and what they start weftd with is understood by weftd. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { parseConfig } from '../src/command-line.js';
import { OPTIONS } from '../src/config.js';

const deploy = fileURLToPath(new URL('../../deploy/', import.meta.url));
const read = (name: string): string => readFileSync(join(deploy, name), 'utf8');

/** Variables of an environment file; with `all`, those too that are commented out. */
const variables = (text: string, all: boolean): Record<string, string> =>
  Object.fromEntries(
    [...text.matchAll(all ? /^#?([A-Z_0-9]+)=(.*)$/gm : /^([A-Z_0-9]+)=(.*)$/gm)].map(([, name, value]) => [
      name,
      value,
    ]),
  );

t.test('the environment file', async (t) => {
  for (const all of [false, true]) {
    const { WEFTD_OPTIONS = '', ...env } = variables(read('weftd.env'), all);
    const argv = WEFTD_OPTIONS.split(' ').filter(Boolean);
    const asked = parseConfig(argv, env, () => '');
    t.match(asked, { kind: 'run', config: { registry: 'etcd', ipMasq: true, metricsAddress: { port: 9469 } } });
    if (all) t.match(asked, { config: { healthAddress: { port: 8471 }, etcdUsername: 'flannel', ifaces: ['eth0'] } });
    const known = new Set(Object.values(OPTIONS).map(({ flag }) => flag.toUpperCase().replaceAll('-', '_')));
    for (const name of Object.keys(env))
      t.ok(known.has(name.replace(/^(WEFT|FLANNELD)_/, '')), `${name} is an option's`);
  }
});

t.test('the units', async (t) => {
  if (spawnSync('systemd-analyze', ['--version']).error) {
    t.comment('SKIPPED: no systemd-analyze: install systemd');
    return;
  }
  const dir = t.testdir();
  // Whether the programs are installed is not the question.
  const unit = (name: string): string => read(name).replace(/^(Exec\w+=)\/usr\/(local\/)?bin\/\S+/gm, '$1/bin/true');
  mkdirSync(join(dir, 'docker.service.d'));
  writeFileSync(join(dir, 'weftd.service'), unit('weftd.service'));
  writeFileSync(join(dir, 'docker.service'), '[Service]\nExecStart=/bin/true\n');
  writeFileSync(join(dir, 'docker.service.d', 'weft.conf'), unit('docker-weft.conf'));
  for (const name of ['weftd.service', 'docker.service']) {
    const { status, stdout, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', join(dir, name)], {
      encoding: 'utf8',
      env: { ...process.env, SYSTEMD_UNIT_PATH: `${dir}:` },
    });
    // About the machine's own units there is nothing to say here.
    const lines = `${stdout}${stderr}`.split('\n').filter((line) => /weftd|docker|weft\.conf/.test(line));
    t.same(lines, [], `${name}: no complaints`);
    t.equal(status, 0, name);
  }
});
