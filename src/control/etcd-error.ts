/**
 * What etcd, or the way to it, does not do for us, as one line: what failed, where, and what to look at. The kinds differ in what
 * comes next: what is `away` comes back by itself, the rest waits for somebody to change something.
 */
import { SetupError } from '../io/setup-error.js';
import { reasonOf } from './reason.js';

/** `answer`: etcd refused one request, and nothing more. */
export type EtcdErrorKind = 'away' | 'tls' | 'auth' | 'denied' | 'not etcd' | 'answer';

const CODES: Readonly<Record<EtcdErrorKind, string>> = {
  away: 'ETCD_AWAY',
  tls: 'ETCD_TLS',
  auth: 'ETCD_AUTH',
  denied: 'ETCD_DENIED',
  'not etcd': 'NOT_ETCD',
  answer: 'ETCD_ERROR',
};

export class EtcdError extends SetupError {
  readonly kind: EtcdErrorKind;
  /** Without the endpoint before it. */
  readonly reason: string;
  readonly endpoint: string;

  constructor(kind: EtcdErrorKind, endpoint: string, reason: string) {
    super(CODES[kind], `etcd ${endpoint}: ${reason}`);
    this.kind = kind;
    this.endpoint = endpoint;
    this.reason = reason;
  }
}

/** None of the endpoints would do: what each said, as one. It is away if any of them may come back by itself. */
export function noneOf(errors: readonly EtcdError[]): EtcdError {
  const reasons = new Map<string, string[]>();
  for (const { endpoint, reason } of errors) reasons.set(reason, [...(reasons.get(reason) ?? []), endpoint]);
  const [[reason, endpoints], ...others] = reasons;
  const kind = errors.find((error) => error.kind === 'away')?.kind ?? errors[0].kind;
  return new EtcdError(
    kind,
    endpoints.join(),
    [reason, ...others.map(([other, places]) => `${places.join()}: ${other}`)].join('; '),
  );
}

/** Said by what closes a new connection: a proxy without etcd behind it, too, so that it may pass. */
export const CLOSES = {
  plain: 'it closes the connection: is it https://?',
  tls: 'it closes the connection: is it http://?',
} as const;

/** Of system errors when connecting. */
const CONNECTING: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'connection refused: is etcd running there?',
  EHOSTUNREACH: 'no route to that host',
  ENETUNREACH: 'no route to that network',
  ETIMEDOUT: 'no answer: is it up, and is the port open to us?',
  ENOTFOUND: 'its name is unknown to DNS',
  EAI_AGAIN: 'DNS does not answer',
};

/** Of OpenSSL, about the server's certificate. */
const VERIFYING: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet: is the time right here?',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name',
};

export interface DialContext {
  readonly endpoint: string;
  readonly tls: boolean;
  /** What its certificate is checked with. */
  readonly roots: string;
  /** What is wrong with our own certificate, as far as can be told without etcd. */
  readonly ownCertificate: string | undefined;
}

/** Of an error of a socket, while connecting or in the TLS handshake. */
export function dialError(error: unknown, { endpoint, tls, roots, ownCertificate }: DialContext): EtcdError {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  const known = code === 'ECONNRESET' ? CLOSES[tls ? 'tls' : 'plain'] : CONNECTING[code];
  if (known !== undefined) return new EtcdError('away', endpoint, known);
  if (!tls) return new EtcdError('away', endpoint, reasonOf(error));
  const verifying = VERIFYING[code];
  if (verifying !== undefined) {
    const detail = code === 'ERR_TLS_CERT_ALTNAME_INVALID' ? ` (${reasonOf(error).replace(/^.*altnames: /, '')})` : '';
    return new EtcdError('tls', endpoint, `${verifying}${detail}`);
  }
  if (/CERT|ISSUER|VERIFY|SIGNATURE/.test(code) && !/ALERT/.test(code)) {
    return new EtcdError('tls', endpoint, `its certificate is not of a CA in ${roots} (${code}): check --etcd-cafile`);
  }
  if (/ALERT/.test(code)) {
    const alert = code.replace(/^ERR_SSL_/, '').replace(/^(SSLV3|TLSV1|TLSV13)_ALERT_/, '');
    const ours = ownCertificate ?? 'check --etcd-certfile and --etcd-keyfile';
    return new EtcdError(
      'tls',
      endpoint,
      `it refuses our certificate (${alert.toLowerCase().replaceAll('_', ' ')}): ${ours}`,
    );
  }
  return new EtcdError('tls', endpoint, `no TLS there (${code || reasonOf(error)}): is it http://?`);
}

// Of gRPC, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
const DEADLINE_EXCEEDED = 4;
const PERMISSION_DENIED = 7;
const UNIMPLEMENTED = 12;
const UNAUTHENTICATED = 16;
/** What passes: unknown, deadline, exhausted, aborted, internal, unavailable, and cancelled by the other side. */
const PASSING = new Set([1, 2, DEADLINE_EXCEEDED, 8, 10, 13, 14]);

export interface CallContext {
  readonly endpoint: string;
  readonly user: string | undefined;
  /** Seconds that were waited for an answer. */
  readonly patience: number;
  /** What was asked for, for messages. */
  readonly what: string;
}

/** Of an error that gRPC gives for a call. */
export function callError(error: unknown, { endpoint, user, patience, what }: CallContext): EtcdError {
  const code = error instanceof Error && 'code' in error ? Number(error.code) : Number.NaN;
  const details = error instanceof Error && 'details' in error ? String(error.details) : reasonOf(error);
  const text = details
    .replace(/^etcdserver: /, '')
    .replace(/\s+/g, ' ')
    .trim();
  const who = user === undefined ? 'we' : `user ${user}`;
  if (/authentication failed|user name not found/.test(text)) {
    return new EtcdError(
      'auth',
      endpoint,
      `wrong user or password (${who}): check --etcd-username and --etcd-password`,
    );
  }
  if (/user name is empty/.test(text)) {
    return new EtcdError('auth', endpoint, 'it wants a user: give --etcd-username and --etcd-password');
  }
  if (code === UNAUTHENTICATED) return new EtcdError('auth', endpoint, `it does not know ${who} (${text})`);
  if (code === PERMISSION_DENIED || /permission denied/.test(text)) {
    return new EtcdError('denied', endpoint, `${who} may not ${what}: grant a role that may read and write there`);
  }
  if (code === UNIMPLEMENTED) return new EtcdError('not etcd', endpoint, `it does not speak etcd's v3 API (${text})`);
  if (code === DEADLINE_EXCEEDED) return new EtcdError('away', endpoint, `no answer within ${patience} s`);
  if (/no leader/.test(text)) return new EtcdError('away', endpoint, 'its cluster has no leader');
  // What does not come from gRPC is of the connection.
  const passes = Number.isNaN(code) || PASSING.has(code);
  return new EtcdError(passes ? 'away' : 'answer', endpoint, text || 'connection lost');
}

/** True if a new token of authentication may help. */
export const isStaleToken = (error: unknown): boolean =>
  /invalid auth token|revision of auth store is old/.test(reasonOf(error));
