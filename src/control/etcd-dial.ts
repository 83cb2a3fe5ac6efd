/**
 * The way to one etcd: its endpoint, the TLS that it needs, and a first word with it. The word is HTTP/2's: whoever sends back its
 * settings has accepted our certificate too (in TLS 1.3 a server refuses one after the handshake). What goes wrong here has
 * an exact reason, which gRPC would lose; and while etcd is away nothing but this runs, a few system calls every second or two.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { SetupError } from '../io/setup-error.js';
import { CLOSES, dialError, EtcdError } from './etcd-error.js';
import { reasonOf } from './reason.js';

/** IANA's port of etcd's clients. */
const PORT = 2379;
/** Milliseconds for the first word. */
const PATIENCE = 3000;

export interface Endpoint {
  /** As people know it: `https://10.0.0.1:2379`. */
  readonly text: string;
  readonly host: string;
  readonly port: number;
  readonly tls: boolean;
}

export interface TlsFiles {
  readonly keyFile: string | undefined;
  readonly certFile: string | undefined;
  readonly caFile: string | undefined;
}

/** Contents of PEM files. */
export interface TlsMaterial {
  readonly key: Buffer | undefined;
  readonly cert: Buffer | undefined;
  /** undefined: Node's own roots. */
  readonly ca: Buffer | undefined;
  /** Where those come from, for messages. */
  readonly roots: string;
}

/** Parses an endpoint as etcd's own clients take them. Throws a SetupError. */
export function parseEndpoint(text: string, { keyFile, certFile, caFile }: TlsFiles): Endpoint {
  const [, scheme, rest] = /^(?:([a-z]+):\/\/)?(.*)$/i.exec(text.trim()) ?? [];
  const match = /^(\[[0-9a-f:.]+\]|[^\s:/@?#]+)(?::(\d{1,5}))?\/*$/i.exec(rest ?? '');
  const port = Number(match?.[2] ?? PORT);
  const known = scheme === undefined || /^https?$/i.test(scheme);
  if (!match || !known || port < 1 || port > 65535) {
    const said = text.replace(/\/\/[^/@]*@/, '//…@'); // a password is nobody's business
    throw new SetupError('BAD_ENDPOINT', `--etcd-endpoints ${said}: expected http://host:port or https://host:port`);
  }
  const tls = scheme === undefined ? (keyFile ?? certFile ?? caFile) !== undefined : scheme.toLowerCase() === 'https';
  const [, host] = match;
  const url = `${tls ? 'https' : 'http'}://${host}:${port}`;
  return { text: url, host: host.replace(/^\[|\]$/g, ''), port, tls };
}

/** Where the CAs of the system are, in the order in which Go looks for them. */
const SYSTEM_ROOTS = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/ca-bundle.pem',
  '/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem',
  '/etc/ssl/cert.pem',
];

/** Reads the files, which may have been renewed since they were read last. Throws a SetupError: one is missing, or is not what it should be. */
export function readTls({ keyFile, certFile, caFile }: TlsFiles): TlsMaterial {
  if ((keyFile === undefined) !== (certFile === undefined)) {
    throw new SetupError('ETCD_TLS_FILE', '--etcd-certfile and --etcd-keyfile: one does not do without the other');
  }
  const roots = caFile ?? process.env.SSL_CERT_FILE ?? SYSTEM_ROOTS.find((path) => existsSync(path));
  const key = keyFile === undefined ? undefined : readPem('--etcd-keyfile', keyFile, createPrivateKey);
  const certificate = (pem: Buffer): unknown => new X509Certificate(pem);
  const cert = certFile === undefined ? undefined : readPem('--etcd-certfile', certFile, certificate);
  const ca = roots === undefined ? undefined : readPem('--etcd-cafile', roots, certificate);
  if (key && cert && !new X509Certificate(cert).checkPrivateKey(createPrivateKey(key))) {
    throw new SetupError('ETCD_TLS_FILE', `--etcd-keyfile ${keyFile} is not the key of --etcd-certfile ${certFile}`);
  }
  return { key, cert, ca, roots: roots ?? "Node's own list" };
}

function readPem(flag: string, path: string, check: (pem: Buffer) => unknown): Buffer {
  try {
    const pem = readFileSync(path);
    check(pem);
    return pem;
  } catch (error) {
    const reason = reasonOf(error);
    const what = flag === '--etcd-keyfile' ? 'private key without a passphrase' : 'certificate';
    throw new SetupError(
      'ETCD_TLS_FILE',
      `${flag} ${path} is of no use: ${/^E[A-Z]+: /.test(reason) ? reason : `there is no ${what} in it, as PEM has them`}`,
    );
  }
}

/** What is wrong with our certificate, as far as a clock can tell. */
function flawOf({ cert }: TlsMaterial): string | undefined {
  if (!cert) return 'it wants one: give --etcd-certfile and --etcd-keyfile';
  const { validFrom, validTo } = new X509Certificate(cert);
  if (Date.parse(validTo) < Date.now()) return `--etcd-certfile has expired, on ${validTo}`;
  if (Date.parse(validFrom) > Date.now()) return `--etcd-certfile is not valid before ${validFrom}`;
  return undefined;
}

/** HTTP/2's connection preface of a client, with empty settings (RFC 9113 3.4), and where a frame has its type. */
const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0', 'latin1');
const FRAME_HEADER = 9;
const TYPE_AT = 3;
const SETTINGS = 4;

/** Resolves once something that may be etcd answers there and takes us. Rejects with an EtcdError. */
export function sayHello(endpoint: Endpoint, material: TlsMaterial | undefined, signal: AbortSignal): Promise<void> {
  const { host, port, text } = endpoint;
  const context = {
    endpoint: text,
    tls: material !== undefined,
    roots: material?.roots ?? '',
    ownCertificate: material && flawOf(material),
  };
  return new Promise((resolve, reject) => {
    let socket: Socket | undefined;
    const end = (error?: EtcdError): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', given);
      socket?.destroy();
      if (error) reject(error);
      else resolve();
    };
    const away = (reason: string): void => end(new EtcdError('away', text, reason));
    const given = (): void => away('given up');
    const timer = setTimeout(() => away(`no answer within ${PATIENCE / 1000} s`), PATIENCE);
    signal.addEventListener('abort', given);
    if (signal.aborted) return given();
    let heard = Buffer.alloc(0);
    try {
      socket = material ? connectTls(tlsOptions(endpoint, material)) : connect({ host, port });
    } catch (error) {
      return end(dialError(error, context));
    }
    socket.on(material ? 'secureConnect' : 'connect', () => socket?.write(PREFACE));
    socket.on('error', (error) => end(dialError(error, context)));
    socket.on('end', () => {
      away(CLOSES[material ? 'tls' : 'plain']);
    });
    socket.on('data', (data: Buffer) => {
      heard = Buffer.concat([heard, data]);
      if (heard.length < FRAME_HEADER) return;
      end(heard[TYPE_AT] === SETTINGS ? undefined : new EtcdError('not etcd', text, 'what answers there is not etcd'));
    });
  });
}

const tlsOptions = ({ host, port }: Endpoint, { key, cert, ca }: TlsMaterial) => ({
  host,
  port,
  key,
  cert,
  ca,
  minVersion: 'TLSv1.2' as const,
  ALPNProtocols: ['h2'],
  // A name, never an address: RFC 6066 section 3.
  ...(/^[\d.]+$|:/.test(host) ? {} : { servername: host }),
});
