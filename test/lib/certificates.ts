/** Certificates for a TLS server of a test and its clients, made by openssl: right ones, expired ones, and of a wrong CA. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';

/** Paths of PEM files. */
export interface Pair {
  readonly cert: string;
  readonly key: string;
}

export interface Certificates {
  /** The authority's certificate. */
  readonly ca: string;
  readonly server: Pair;
  readonly client: Pair;
  /** Of the same CA; both ran out yesterday. */
  readonly expiredServer: Pair;
  readonly expiredClient: Pair;
  /** An authority that signed nothing that matters here, and a client of its. */
  readonly wrongCa: string;
  readonly wrongClient: Pair;
}

const VALID_DAYS = 30;
const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];

/** Makes all of them in `dir`. The server's are good for `names` (addresses or DNS names), localhost and 127.0.0.1. */
export function makeCertificates(dir: string, names: readonly string[]): Certificates {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const at = (name: string): Pair => ({ cert: join(dir, `${name}.crt`), key: join(dir, `${name}.key`) });
  const authority = (name: string): Pair => {
    const { cert, key } = at(name);
    openssl('req', '-x509', ...KEY, '-keyout', key, '-out', cert, '-subj', `/CN=${name}`, '-days', `${VALID_DAYS}`);
    return { cert, key };
  };
  const known = [...new Set([...names, '127.0.0.1', 'localhost'])].map(
    (name) => `${isIP(name) ? 'IP' : 'DNS'}:${name}`,
  );
  const extensions = join(dir, 'extensions');
  writeFileSync(extensions, `subjectAltName=${known.join(',')}\nextendedKeyUsage=serverAuth,clientAuth\n`);
  const signed = (name: string, ca: Pair, days: number): Pair => {
    const { cert, key } = at(name);
    const request = join(dir, `${name}.csr`);
    openssl('req', '-new', ...KEY, '-keyout', key, '-out', request, '-subj', `/CN=${name}`);
    openssl(
      ...['x509', '-req', '-in', request, '-CA', ca.cert, '-CAkey', ca.key, '-CAcreateserial'],
      ...['-days', `${days}`, '-extfile', extensions, '-out', cert],
    );
    return { cert, key };
  };
  const ca = authority('ca');
  const wrong = authority('wrong-ca');
  return {
    ca: ca.cert,
    server: signed('server', ca, VALID_DAYS),
    client: signed('client', ca, VALID_DAYS),
    expiredServer: signed('expired-server', ca, -1),
    expiredClient: signed('expired-client', ca, -1),
    wrongCa: wrong.cert,
    wrongClient: signed('wrong-client', wrong, VALID_DAYS),
  };
}

function openssl(...args: string[]): void {
  const { status, stderr, error } = spawnSync('openssl', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`openssl ${args[0]}: ${error?.message ?? stderr.trim().split('\n').at(-1)}`);
}
