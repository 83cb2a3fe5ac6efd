/**
 * The registry contract: who the peers are and which subnets they own, and how that changes.
 *
 * A registry is read as an async iterable of updates. Each carries a cursor, the registry's own mark of how far the
 * reader has come (a revision, a resourceVersion, a count); whoever reads it may hand the last one back to go on from there.
 *
 *   watch(signal)            snapshot · events · events · snapshot · …
 *   watch(signal, cursor)    events · …, or a snapshot if the history before it is gone (compacted)
 *
 * Rules for every kind (static, embedded, and later etcd and kubernetes):
 *  - Without a cursor the first update is a snapshot. A snapshot replaces everything; it may come at any time.
 *  - Events are in order, and repeating one changes nothing: a renewed lease may be told again as `put`.
 *  - Records are whole. The reader compares all of a record (records.ts), so a changed address is seen as such.
 *  - A registry that is away says nothing, or `trouble`; what it said last stays in force. It does not end the iteration
 *    for a failure that may pass: it waits, with backoff, and goes on. If it throws, the reader calls `watch` again with its
 *    last cursor, after a while.
 *  - `trouble` lasts until an update without it. One that can be read but not written tells its events with it.
 *  - Own records (this host's) may be among them; the reader leaves them out.
 *  - The iteration ends soon after `signal` aborts, and lets go of what it holds.
 */
import type { PeerRecord } from './records.js';

/** Opaque; compared by nobody. */
export type Cursor = string;

export type RegistryEvent =
  | { readonly type: 'put'; readonly record: PeerRecord }
  | { readonly type: 'delete'; readonly id: string };

export type RegistryUpdate =
  | {
      readonly kind: 'snapshot';
      readonly records: readonly PeerRecord[];
      readonly cursor: Cursor;
      readonly trouble?: Trouble;
    }
  | {
      readonly kind: 'events';
      readonly events: readonly RegistryEvent[];
      readonly cursor: Cursor;
      readonly trouble?: Trouble;
    }
  | { readonly kind: 'trouble'; readonly trouble: Trouble };

/** The registry cannot tell, or take, what is so now. */
export interface Trouble {
  /** One line. */
  readonly reason: string;
  /** Date.now() of when what is in force was last known to be right; default: when the trouble is told. */
  readonly since?: number;
}

export interface Registry {
  /** For messages: `peers file /etc/weft/peers.json`. */
  readonly name: string;
  watch(signal: AbortSignal, cursor?: Cursor): AsyncIterable<RegistryUpdate>;
}
