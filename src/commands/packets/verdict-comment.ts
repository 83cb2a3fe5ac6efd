/** What became of a packet, as the comment in a capture file: written by `weft capture`, and read again by `weft decode`. */

export interface Verdict {
  /** Seen from the host that captured. */
  readonly direction: 'outbound' | 'inbound';
  readonly kind: 'sent' | 'forwarded' | 'consumed' | 'dropped';
  /** Of a drop the counter's name, as in `weft drops`. */
  readonly reason?: string;
  /** Whom it went to, or came from. */
  readonly peer?: string;
}

/** `outbound: forwarded to b`, `inbound: forwarded, from b`, `inbound: dropped, unknown_peer (underlay sender is not a peer)`. */
export function verdictComment({ direction, kind, reason, peer }: Verdict, help?: string, segment = 0): string {
  const words: string[] = [kind];
  // What comes in leaves us through the device.
  if (direction === 'inbound' && kind === 'sent') words[0] += TO_HOST;
  if (reason !== undefined) words.push(reason);
  if (peer !== undefined && direction === 'inbound') words.push(`from ${peer}`);
  else if (peer !== undefined && words.length === 1) words[0] += ` to ${peer}`;
  else if (peer !== undefined) words.push(`to ${peer}`);
  const meaning = help === undefined || kind !== 'dropped' ? '' : ` (${help})`;
  return `${direction}: ${words.join(', ')}${meaning}${segment === 0 ? '' : `; in segments of ${segment} bytes`}`;
}

const TO_HOST = ' to the host';

const SHAPE =
  /^(outbound|inbound): (sent|forwarded|consumed|dropped)(?:(?<=^inbound: sent) to the host)?(?:, (\w+))?(?:,? (?:to|from) (.+?))?(?: \(.*\))?(?:; in segments of \d+ bytes)?$/;

/** Longer than any of ours. Files come from elsewhere, and what is very long takes SHAPE very long. */
const MOST_COMMENT = 1024;

/** The verdict in a comment; undefined if it says something else. */
export function verdictIn(comment: string): Verdict | undefined {
  if (comment.length > MOST_COMMENT) return undefined;
  const [, direction, kind, reason, peer] = SHAPE.exec(comment) ?? [];
  if (direction === undefined) return undefined;
  return {
    direction: direction as Verdict['direction'],
    kind: kind as Verdict['kind'],
    ...(reason === undefined ? {} : { reason }),
    ...(peer === undefined ? {} : { peer }),
  };
}
